"""Connections that cannot be used up: who is silent, or does not read what was asked for, is cut off after a while.

uvicorn's protocols for HTTP and for WebSockets, made firm. Their requests are answered in serving/app.py and serving/live.py.
"""

import asyncio
import math
import re

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode
from websockets.protocol import State

HEADER_SECONDS = 20.0  # a client has for its request line and headers, or to begin a WebSocket
UNWANTED_SECONDS = 5.0  # for the rest of a body, once the answer is given: so long because who is cut off may not read it
UNREAD_SECONDS = 30.0  # in which a client has to read all that was sent to it
LOOK_SECONDS = 5.0  # between looks at that
LAST_SECONDS = 5.0  # in which something of it has to be read, when the server stops
MOST_CONNECTIONS = 1000  # that are answered; more get 503, and twice as many are not let in
HANDSHAKE_HEADERS, HANDSHAKE_BYTES = 64, 4096  # of a WebSocket's first request, less than its parser bears
STREAM, CONTROL = b"/stream", re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class _Watched(asyncio.Protocol):
    """Aborts connections whose clients do not read: to close one is to wait until they have."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._unread = 0.0  # seconds for which there has been something
        self._look_again = self.loop.call_later(LOOK_SECONDS, self._look)
        self._patience: asyncio.TimerHandle | None = None
        if len(self.connections) > 2 * MOST_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._leave()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._abort_unless_read()

    def _abort_unless_read(self, before: float = math.inf) -> None:
        """Let a client have the rest of its answer, as long as it goes on reading."""
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        elif left:
            self.loop.call_later(LAST_SECONDS, self._abort_unless_read, left)

    def _look(self) -> None:
        self._unread = self._unread + LOOK_SECONDS if self.transport.get_write_buffer_size() else 0.0
        if self._unread >= UNREAD_SECONDS:
            self.transport.abort()
        self._look_again = self.loop.call_later(LOOK_SECONDS, self._look)

    def _wait(self, seconds: float) -> None:
        """Close the connection if what is waited for has not come by then; whoever waits already goes on."""
        if self._patience is None:
            self._patience = self.loop.call_later(seconds, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _leave(self) -> None:
        """What becomes of the connection is no longer this object's business."""
        self._look_again.cancel()
        self._wait_no_more()


class HttpConnection(_Watched, H11Protocol):
    """A client that sends requests."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_headers()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # this is the answer to the request under way
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # it has been answered, and goes on with nonsense
            self.transport.close()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._leave()
        super().handle_websocket_upgrade(event)

    def _should_upgrade(self) -> bool:
        """Only what will be taken for the beginning of a WebSocket; the rest is answered as any other request."""
        return (
            super()._should_upgrade()
            and self.scope["raw_path"] == STREAM
            and self.scope["method"] == "GET"
            and len(self.connections) <= MOST_CONNECTIONS
            and len(self.headers) <= HANDSHAKE_HEADERS
            and len(self.scope["query_string"]) <= HANDSHAKE_BYTES
            and not any(len(name) + len(value) > HANDSHAKE_BYTES or CONTROL.search(value) for name, value in self.headers)
            and not {b"content-length", b"transfer-encoding"} & {name for name, _ in self.headers}
        )

    def _wait_for_headers(self) -> None:
        """Give a client time for its headers, and for the rest of a body that nobody wants any more, but not for ever."""
        if self.transport.get_protocol() is not self:  # it is a WebSocket now
            return
        if self.conn.their_state is h11.IDLE:
            self._wait(HEADER_SECONDS)
        elif self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            self._wait(UNWANTED_SECONDS)
        else:
            self._wait_no_more()


class SocketConnection(_Watched, WebSocketsSansIOProtocol):
    """A client that speaks, live."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait(HEADER_SECONDS)

    def shutdown(self) -> None:
        if self.conn.state is State.OPEN and not self.transport.is_closing():
            super().shutdown()
        else:  # it has not begun, or has ended: uvicorn would have it say so once more, which is an error
            self.transport.close()
            self._abort_unless_read()

    def handle_connect(self, event: object) -> None:
        super().handle_connect(event)
        self._wait_no_more()

    def handle_ping(self) -> None:
        super().handle_ping()
        if not self.writable.is_set():  # who does not read the answers asks no more
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # of which uvicorn would log a traceback
                if self.conn.state is State.OPEN:  # and not ended by what came behind it
                    self.conn.send_close(CloseCode.INVALID_DATA)
                    self.handle_parser_exception()
                return
        super().send_receive_event_to_app()
