"""What every request passes on its way in, and every answer on its way out."""

import re
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.connections import MOST_CONNECTIONS
from serving.openai import openai_error
from serving.requests import Refused, bearer, log_fault
from serving.service import RETRY_AFTER, Service

ORIGIN_OF_ADDRESS = re.compile("^https?://[^/]*", re.IGNORECASE)  # RFC 9112, 3.2.2: servers bear what proxies are asked
HEALTH = "/health/"
OPEN_ROUTES, OPEN_BELOW = ("/", "/info"), ("/page/", HEALTH)  # that need no key; none tells what was said
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": CONTENT_SECURITY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gate:
    """A request's key is looked at, its answer gets the headers that protect, and both are counted."""

    def __init__(self, app: Callable, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = ORIGIN_OF_ADDRESS.sub("", scope["path"]) or "/"
        began, request = time.monotonic(), Request(scope)  # whose `url` a client's Host header has a say in: not used here
        answer: dict[str, int] = {}

        async def guarded(message: dict) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
                self._add_headers(request, message)
            await send(message)

        refusal = self._refusal(request)
        try:
            await (refusal or self._app)(scope, receive, guarded)
        except Exception as error:  # a fault of ours: whoever runs the server is told, clients are not
            log_fault(error)
            if not answer:
                internal = error_response(request, Refused(500, "an error of the server, which has logged it"))
                await internal(scope, receive, guarded)
        finally:
            route = getattr(scope.get("route"), "path", "other") if refusal is None else "refused"
            metrics = self._service.metrics
            metrics.requests.labels(route, str(answer.get("status", 500))).inc()
            metrics.latency.labels(route).observe(time.monotonic() - began)

    def _refusal(self, request: Request) -> Response | None:
        path = request.scope["path"]
        if request.method == "OPTIONS" and request.headers.get("origin") in self._service.config.allow_origin:
            return Response(status_code=204)
        if len(self._service.connections) > MOST_CONNECTIONS and not path.startswith(HEALTH):
            full = error_response(request, Refused(503, "full: too many connections; try again", RETRY_AFTER))
            full.headers["Connection"] = "close"
            return full
        is_open = path in OPEN_ROUTES or path.startswith(OPEN_BELOW)
        if is_open or self._service.keys.admit(bearer(request.headers.get("authorization"))):
            return None
        return error_response(request, Refused(401, "this server needs a key: send it as Authorization: Bearer KEY"))

    def _add_headers(self, request: Request, message: dict) -> None:
        extra = dict(SECURITY_HEADERS)
        # The page's files may be kept if they are asked for anew each time: those of another release would not fit together.
        extra["Cache-Control"] = "no-cache" if request.scope["path"].startswith("/page/") else "no-store"
        if self._service.stopping.is_set():
            extra["Connection"] = "close"
        origin = request.headers.get("origin")
        if origin in self._service.config.allow_origin:
            extra |= {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Headers": request.headers.get("access-control-request-headers", "authorization"),
                "Access-Control-Expose-Headers": "Retry-After",
                "Cross-Origin-Resource-Policy": "cross-origin",
                "Vary": "Origin",
            }
        message["headers"] = [*message["headers"], *((k.lower().encode(), v.encode("latin-1")) for k, v in extra.items())]


def error_response(request: Request, refused: Refused) -> Response:
    """An error as the clients of a route know it."""
    headers = {"Retry-After": str(refused.retry_after)} if refused.retry_after else {}
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if request.scope["path"].startswith("/v1/"):
        return JSONResponse(openai_error(refused), refused.status, headers)
    return JSONResponse({"status": "error", "message": refused.message}, refused.status, headers)
