"""No network in tests: this machine's own addresses alone can be connected to."""

import ipaddress
import socket
from typing import Any


def refuse() -> None:
    """From now on, in this process and its forks.

    Datagrams' sockets may be: connecting them sends nothing, and is how Ray learns this machine's own address.
    """

    def guarded(connect: Any) -> Any:
        def only_here(self: socket.socket, address: Any) -> Any:
            reaches = self.type == socket.SOCK_STREAM and self.family in (socket.AF_INET, socket.AF_INET6)
            if reaches and not _is_here(address[0]):
                # Who opened it waits for an OSError to close it; ours is none: those are passed over when offline.
                self.close()
                raise RuntimeError(f"tests use no network, and this one asks {address[0]}")
            return connect(self, address)

        return only_here

    socket.socket.connect = guarded(socket.socket.connect)
    socket.socket.connect_ex = guarded(socket.socket.connect_ex)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
