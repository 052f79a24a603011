"""Every model that ships writes what reading anew would."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tests.generation.toys import ABC, naive_greedy, one, write

CONF = Path(__file__).parents[2] / "conf"
SMALL = "model.n_layers=2 model.d_model=16 model.n_heads=2"
SHIPPED = {
    "lstm": "+model=lstm model.d_model=16",
    "gru with a mixture": "+model=lstm model/head=mixture model.cell=gru model.d_model=16",
    "transformer": f"+model=transformer {SMALL} model.max_context=8 model.init_std=0.3",
    "alibi in a window": f"+model=transformer {SMALL} model.positions=alibi model.window=5 model.init_std=0.3"
    " model.max_context=64",
    "summed tokens": f"+model=transformer {SMALL} model.max_context=8 model.embed_ngram=3 model.init_std=0.3",
    "gpt2": f"+model=gpt2 {SMALL} model.max_context=8 model.init_std=0.3",
    "ngram": "+model=ngram model.order=3",
}


@pytest.fixture(params=SHIPPED)
def shipped(request):
    torch.manual_seed(6)
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = compose(overrides=SHIPPED[request.param].split())
    model = instantiate(config.model)(vocab_size=ABC.vocab_size)
    if request.param == "ngram":
        model.fit(np.random.default_rng(0).integers(0, ABC.vocab_size, 400), start_id=0)
    return model.eval()


def test_every_shipped_model_writes_from_its_state_what_reading_anew_would(shipped):
    for prompt in ("", "dcbaabdcab"):
        assert list(one(shipped, [prompt], max_new_tokens=24).ids) == naive_greedy(shipped, prompt, 24)


def test_every_shipped_model_samples_whatever_is_beside_it(shipped):
    prompts, how = ["", "abcd", "bbbbccccdddd"], {"temperature": 1.0, "num_samples": 2, "max_new_tokens": 16}
    together = write(shipped, prompts, **how)
    for place, samples in enumerate(write(shipped, prompts, batch_size=1, **how)):
        assert [g.ids for g in samples] == [g.ids for g in together[place]]


@pytest.mark.parametrize("how", [{"temperature": 1.0, "num_samples": 2}, {"num_beams": 3, "num_samples": 2}])
def test_the_log_prob_of_what_a_shipped_model_wrote_is_its_score(shipped, how):
    prompt = ABC.encode("abcd").ids.tolist()
    for result in write(shipped, ["abcd"], max_new_tokens=3, **how)[0]:
        ids = [0, *prompt, *result.ids]
        log_probs = shipped.head.log_probs(shipped(torch.tensor([ids[:-1]]))[0])[0]
        chosen = [log_probs[t, ids[t + 1]].item() for t in range(len(prompt), len(ids) - 1)]
        assert result.log_prob == pytest.approx(sum(chosen), rel=1e-4)
