"""The connection to the servers: supervised, renewed for ever, never silently stalled.

One nats client lives as long as its connection; when that is gone, whatever waited for a reply fails
at once, the client is torn down and a new one dialled, with growing, random pauses. nats-py's own
reconnecting is not used: it sends old frames again, gives up for good after some errors, and tells
nobody that a reply will not come.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import random
from typing import Any, Final

from nats.aio.client import Client

from net_adapter_jetstream import failures
from net_adapter_jetstream.client import FastClient, abandon, usable
from net_adapter_jetstream.config import JetStreamConfig
from net_adapter_jetstream.dial import check_files, check_tls, options_for
from net_adapter_jetstream.replies import Waiter
from netcore import (
    AdapterClosedError,
    AdapterError,
    AdapterRefusedError,
    TransientAdapterError,
    mask_credentials,
)

__all__ = ["Connection"]

_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 2.0
_MOST_DISCOVERED: Final = 32
_CANCEL_S: Final = 1.0
_LEAST_DIAL_S: Final = 0.2


class State(enum.Enum):
    """Where the connection stands: NEW -> UP <-> DOWN -> CLOSED."""

    NEW = "new"
    UP = "up"
    DOWN = "down"
    CLOSED = "closed"


class Connection:
    """A connection that renews itself.

    Args:
        config: the adapter's settings.
        logger: for changes of state.
        fast: use nats-py's private parts where they exist.

    Attributes:
        epoch: grows with each new connection.
        version: the connected server's version, e.g. (2, 12, 1).
        max_payload: its limit for one message, headers included, bytes.
        reconnects: connections beyond the first.
        cause: why the link is down.
    """

    def __init__(self, config: JetStreamConfig, logger: logging.Logger, *, fast: bool = True) -> None:
        self.epoch = 0
        self.version = (0, 0, 0)
        self.max_payload = 0
        self.reconnects = 0
        self.cause: AdapterError | None = None
        self.timeout = config.timeout_ms / 1000
        self._config = config
        self._logger = logger
        self._fast = fast and usable()
        self._state = State.NEW
        self._client: Client | None = None
        self._sinks: dict[bytes, Waiter] = {}
        self._inbox = ""
        self._down = asyncio.Event()
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._discovered: list[str] = []

    @property
    def up(self) -> bool:
        """Whether there is a connection now."""
        return self._state is State.UP

    @property
    def server(self) -> str:
        """The connected server's version, for messages."""
        return "nats-server " + ".".join(map(str, self.version))

    async def open(self) -> None:
        """Connect for the first time, within the time-out.

        Raises:
            TransientAdapterError: nothing answers. AdapterRefusedError: the login is refused.
        """
        check_files(self._config)
        try:
            async with asyncio.timeout(self.timeout):
                await self._connect()
        except TimeoutError:
            raise self.cause or TransientAdapterError(
                f"no answer from {self._config.shown_servers} within {self.timeout:g} s"
            ) from None
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="netcore-jetstream-link")

    async def close(self) -> None:
        """Let what is under way end, within the time-out, and end the connection. Idempotent."""
        if self._state is State.CLOSED:
            return
        was_up, self._state = self.up, State.CLOSED
        self._changed.set()
        keeper, self._keeper = self._keeper, None
        client = self._client
        try:
            if keeper is not None:
                keeper.cancel()
                await asyncio.wait([keeper], timeout=_CANCEL_S)
            if client is not None and was_up:
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(self.timeout):
                        for waiter in list(self._sinks.values()):
                            await waiter.done.wait()
                        await _ping(client, self.timeout)
        finally:
            self._fail(self._trouble())
            if client is not None:
                await abandon(client)

    async def reconnected(self) -> None:
        """Wait until there is a connection; no bound of its own."""
        while self._state is not State.UP:
            if self._state is State.CLOSED:
                raise self._trouble()
            self._changed.clear()
            await self._changed.wait()

    async def lost_or(self, future: asyncio.Future[Any]) -> None:
        """Wait until `future` is done or the connection is lost; no bound of its own."""
        down = asyncio.ensure_future(self._down.wait())
        try:
            await asyncio.wait([future, down], return_when=asyncio.FIRST_COMPLETED)
        finally:
            down.cancel()

    def _trouble(self) -> AdapterError:
        """Return a fresh error of the kind and text of `cause`."""
        if self._state is State.CLOSED:
            return AdapterClosedError("the jetstream adapter is closed")
        cause = self.cause or TransientAdapterError("not connected to a NATS server")
        return type(cause)(str(cause))

    # -- keeping it

    async def _keep(self) -> None:
        pauses = random.SystemRandom()
        while True:
            await self._until_down()
            if self._state is State.CLOSED:
                return  # nats-py swallows cancellations now and then
            self._state = State.DOWN
            error = self._trouble()
            self._logger.warning("connection lost: %s", error)
            self._fail(error)
            if self._client is not None:
                with contextlib.suppress(Exception):
                    await abandon(self._client)
            pause = _FIRST_PAUSE_S
            while self._state is State.DOWN:
                await asyncio.sleep(pauses.uniform(pause / 2, pause))
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                try:
                    await self._connect()
                except AdapterError as trouble:
                    self.cause = trouble
                except Exception as trouble:
                    self._logger.exception("cannot connect")
                    self.cause = TransientAdapterError(f"cannot connect: {trouble!r}")
            if self._state is State.UP:
                self.reconnects += 1
                self._logger.info("connected again")

    async def _until_down(self) -> None:
        """Return once the connection is gone, or answers no ping."""
        client = self._client
        assert client is not None, "only called with a connection"
        beat = max(self.timeout / 2, 0.25)
        while not self._down.is_set() and self._state is State.UP:
            received = client.stats["in_msgs"]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(beat):
                    await self._down.wait()
                    return
            if client.stats["in_msgs"] != received:
                continue
            try:
                await _ping(client, self.timeout)
            except Exception as error:
                self._on_lost(error)

    async def _connect(self) -> None:
        """Try each address once, the configured ones first.

        Raises:
            AdapterError: what the last one answered; a refusal wins.
        """
        trouble: AdapterError | None = None
        configured = self._config.servers()
        for address in random.sample(configured, len(configured)) + self._discovered:
            try:
                client = await self._dial(address, max(self.timeout / len(configured), _LEAST_DIAL_S))
            except AdapterError as error:
                if trouble is None or isinstance(error, AdapterRefusedError):
                    trouble = error
                self.cause = trouble
                continue
            if self._state is State.CLOSED:
                await abandon(client)
                raise self._trouble()
            self._adopt(client)
            return
        assert trouble is not None, "there is at least one address"
        raise trouble

    def _adopt(self, client: Client) -> None:
        version = client.connected_server_version
        self.version = (version.major, version.minor, version.patch)
        self.max_payload = client.max_payload
        known = set(self._config.servers())
        for found in client.discovered_servers:
            if (address := found.geturl()) not in known and address not in self._discovered:
                self._discovered.append(address)
        del self._discovered[:-_MOST_DISCOVERED]
        self._client, self._state, self.cause = client, State.UP, None
        self.epoch += 1
        self._changed.set()

    async def _dial(self, address: str, within: float) -> Client:
        """Connect to one address within so many seconds."""
        shown = mask_credentials(address)
        seen: list[Exception] = []
        down = asyncio.Event()

        def lost(error: Exception | None) -> None:
            if self._client is client:
                self._on_lost(error)
            else:
                down.set()

        async def on_error(error: Exception) -> None:
            seen.append(error)
            del seen[:-4]
            self._on_error(error)

        async def on_closed() -> None:
            lost(None)

        client: Client = FastClient(lost) if self._fast else Client()
        try:
            options = options_for(self._config, address)
            async with asyncio.timeout(within):
                if not self._fast and "tls" in options and not self._config.tls_first:
                    await check_tls(address)
                await client.connect(error_cb=on_error, closed_cb=on_closed, **options)
                await self._open_inbox(client)
        except Exception as error:
            await abandon(client)
            known = [one for one in [*seen, error] if not str(one).startswith("nats: no servers")]
            raise failures.from_client(known[-1] if known else error, shown) from error
        except BaseException:
            await abandon(client)
            raise
        self._down.clear()
        if down.is_set():
            self._down.set()
        return client

    async def _open_inbox(self, client: Client) -> None:
        inbox = client.new_inbox()
        if isinstance(client, FastClient):
            client.sinks = self._sinks  # type: ignore[assignment]  # a waiter is a sink
            await client.open_inbox(inbox)
        else:
            await client.subscribe(
                f"{inbox}.*", cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
            )
        self._inbox = inbox

    # -- what the client tells

    def _on_lost(self, error: Exception | None) -> None:
        if self._state is State.UP:
            self._state = State.DOWN
            shown = self._config.shown_servers
            self.cause = TransientAdapterError(f"connection to {shown} lost ({error or 'closed'})")
        if self._state is not State.NEW:
            self._fail(self._trouble())
        self._down.set()

    def _on_error(self, error: Exception) -> None:
        text = str(error)
        if "permissions violation" in text.lower():
            refused = AdapterRefusedError(f"{text}: grant it to this account at the server")
            for waiter in list(self._sinks.values()):
                if f'"{waiter.subject}"'.lower() in text.lower() or self._inbox.lower() in text.lower():
                    waiter.fail(refused)
        self._logger.debug("nats: %s", text)

    async def _on_message(self, message: Any) -> None:
        waiter = self._sinks.get(message.subject.rpartition(".")[2].encode())
        if waiter is None:
            return
        if message.headers:
            fields = dict(message.headers)
            status = fields.pop("Status", "")
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            waiter.headed(f"NATS/1.0{' ' if status else ''}{status}\r\n{lines}\r\n".encode(), message.data)
        else:
            waiter.plain(message.data)

    def _fail(self, error: AdapterError) -> None:
        for waiter in list(self._sinks.values()):
            waiter.fail(type(error)(str(error)))


async def _ping(client: Client, timeout: float) -> None:
    """Send what is queued and see the server answer. A client that failed this is to be abandoned."""
    # `flush` would return at once, without an error, where the client's reader has died.
    await client.rtt(timeout=timeout)  # type: ignore[arg-type]  # seconds, whole or not
