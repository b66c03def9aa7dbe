"""Ask one node of a running mesh what it knows, without joining."""

from __future__ import annotations

import secrets
import time
from typing import Any

import zmq

from net_adapter_mesh.frames import (
    MAGIC,
    MAX_FRAME,
    VERSION,
    Bye,
    FrameError,
    Hello,
    Record,
    Refuse,
    Table,
    decode,
    encode,
)
from net_adapter_mesh.security import Keys
from netcore import AdapterRefusedError, TransientAdapterError

__all__ = ["probe"]


def probe(mesh: str, address: str, keys: Keys | None, server_key: str, timeout: float) -> list[Record]:
    """Return the member records that the node at `address` holds.

    Args:
        mesh: the mesh's name.
        address: `tcp://host:port`.
        keys: CURVE keys, or None.
        server_key: the node's public key, if there are keys.
        timeout: seconds for the whole.

    Raises:
        TransientAdapterError: no answer in time (a node that requires keys does not answer others).
        AdapterRefusedError: the node refuses, with its reason.
    """
    context: zmq.Context[Any] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        dealer.set(zmq.LINGER, 100)
        dealer.set(zmq.MAXMSGSIZE, MAX_FRAME)
        if keys is not None:
            dealer.curve_secretkey, dealer.curve_publickey = keys.secret, keys.public
            dealer.curve_serverkey = server_key.encode()
        dealer.connect(address)
        dealer.send(encode(Hello(MAGIC, VERSION, mesh, f"probe-{secrets.token_hex(4)}", time.time_ns())))
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if not dealer.poll(int(left * 1000) + 1):
                break
            message = decode(dealer.recv())
            if isinstance(message, Refuse):
                raise AdapterRefusedError(f"{address} refuses: {message.reason}")
            if isinstance(message, Table) and message.records:
                dealer.send(encode(Bye()))
                return message.records
        raise TransientAdapterError(f"{address} did not answer within {timeout:g} s")
    except FrameError as error:
        raise TransientAdapterError(f"{address} speaks something else: {error}") from error
    finally:
        dealer.close()
        context.term()
