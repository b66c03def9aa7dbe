"""What is looked at once, when an adapter opens."""

from __future__ import annotations

import asyncio
from typing import Final

from redis import exceptions as redis_errors

from net_adapter_redis.driver import unfit_driver
from net_adapter_redis.failures import translate
from net_adapter_redis.resp import command
from net_adapter_redis.session import Session
from netcore import AdapterRefusedError, TransientAdapterError

__all__ = ["check_server"]

_OLDEST: Final = (6, 2)


async def check_server(session: Session, timeout: float) -> None:
    """Connect, and compare the server with the settings.

    Args:
        session: the adapter's.
        timeout: seconds for all of it.

    Raises:
        TransientAdapterError: no server answers in time.
        AdapterRefusedError: it refuses, or is not what the settings say; or redis-py is not what it was.
    """
    network, address = session.network, session.network.address
    try:
        async with asyncio.timeout(timeout):
            link = network.writer(session.keys.registry)
            info = await link.call(
                b"".join(command("INFO", part) for part in ("server", "cluster", "memory")), 3
            )
            _check(session, address, [reply for reply in info if isinstance(reply, bytes)])
            await network.learn_slots()
            for reply in info:  # a right that may be missing: then nothing can be checked
                if isinstance(reply, Exception) and "NOPERM" not in f"{type(reply).__name__} {reply}":
                    failure = translate(reply, "open", address)
                    if isinstance(failure, TransientAdapterError):
                        raise reply
    except TimeoutError as error:
        raise TransientAdapterError(f"open: Redis at {address}: no answer within {timeout:g} s") from error
    except (redis_errors.RedisError, OSError) as error:
        raise translate(error, "open", address) from error
    except (AttributeError, TypeError) as error:  # a connection's argument or inside is gone
        raise unfit_driver(error) from error


def _check(session: Session, address: str, parts: list[bytes]) -> None:
    facts: dict[str, str] = {}
    for line in b"\n".join(parts).decode(errors="replace").splitlines():
        name, _, value = line.partition(":")
        facts[name] = value
    version = facts.get("redis_version", "")
    if version and tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST:
        raise AdapterRefusedError(f"open: Redis at {address} is {version}; 6.2 or newer is needed")
    clustered = facts.get("cluster_enabled")
    if clustered == "1" and not session.config.cluster:
        raise AdapterRefusedError(f"open: Redis at {address} is a member of a cluster: set cluster=True")
    if clustered == "0" and session.config.cluster:
        raise AdapterRefusedError(
            f"open: Redis at {address} is no member of a cluster: leave cluster=True out"
        )
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and facts.get("maxmemory", "0") != "0":
        session.logger.warning(
            "Redis at %s evicts keys when its memory is full (maxmemory-policy %s): it may then forget "
            "stored events or which batches it has; use noeviction",
            address,
            policy,
        )
