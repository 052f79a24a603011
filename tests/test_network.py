"""Tests reach nothing but their own machine."""

import socket
import sys

import pytest

ASKS = "import socket; socket.socket().connect(('192.0.2.1', 80))"


# For documentation alone (RFC 5737, RFC 3849): nobody is there.
@pytest.mark.parametrize(("family", "address"), [("AF_INET", "192.0.2.1"), ("AF_INET6", "2001:db8::1")])
@pytest.mark.parametrize("how", ["connect", "connect_ex"])
def test_the_network_is_refused(family, address, how):
    with socket.socket(getattr(socket, family)) as asking, pytest.raises(RuntimeError, match=f"no network.*{address}"):
        getattr(asking, how)((address, 80))


def test_names_are_refused_and_libraries_that_use_sockets():
    from urllib.request import urlopen

    with socket.socket() as asking, pytest.raises(RuntimeError, match=r"no network.*huggingface\.co"):
        asking.connect(("huggingface.co", 443))
    with pytest.raises(RuntimeError, match=r"no network.*192\.0\.2\.1"):
        urlopen("http://192.0.2.1/", timeout=1)


def test_the_warm_process_has_none_either(warm, tmp_path):
    told = warm.run([sys.executable, "-c", ASKS], tmp_path)
    assert told.returncode == 1
    assert "RuntimeError: tests use no network, and this one asks 192.0.2.1" in told.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_answers(host):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as asking:
        asking.connect((host, server.getsockname()[1]))
        server.accept()[0].close()


def test_a_local_socket_answers(tmp_path, monkeypatch):
    # Their names are short.
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as asking:
        server.bind("here")
        server.listen()
        asking.connect("here")
