"""Where text comes from: the embedded corpus, your files, Hugging Face data sets, and sets with published numbers."""

from lmlab.data.corpora.document import SPLITS, Corpus, Document
from lmlab.data.corpora.files import Files
from lmlab.data.corpora.hf import HuggingFace
from lmlab.data.corpora.published import Enwik8, PennTreebank, TinyShakespeare, WikiText2
from lmlab.data.corpora.sotu import Sotu

__all__ = [
    "SPLITS",
    "Corpus",
    "Document",
    "Enwik8",
    "Files",
    "HuggingFace",
    "PennTreebank",
    "Sotu",
    "TinyShakespeare",
    "WikiText2",
]
