"""How the grading service and that of sealed data say no: a line in the run's log, and an answer in JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web as http

if TYPE_CHECKING:
    from posttrainbench.gateway.context import Context

# Lines on refused requests beyond this number are not written: the log is for reading, not for filling.
_LOGGED = 10_000


class Refused(Exception):
    """A request that is not met.

    Attributes:
        status: HTTP status of the answer.
        kind: short name of the reason.
        message: what is wrong, in a sentence or two.
        fields: further fields of the answer.
    """

    def __init__(self, status: int, kind: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.fields = status, kind, message, fields


class Refusals:
    """Answers and logs them, for one service."""

    def __init__(self, context: Context, log: str) -> None:
        self._context, self._log, self._count = context, log, 0

    def answer(self, request: http.BaseRequest, refused: Refused, *, log: bool = True) -> http.Response:
        """The answer, after a line in the log."""
        self._count += 1
        if log and self._count <= _LOGGED:
            told = {"reason": refused.kind, "status": refused.status, "message": refused.message}
            self._context.log(self._log, event="refused", **told, path=request.path[:200])
        error = {"kind": refused.kind, "message": refused.message, **refused.fields}
        return http.json_response({"error": error}, status=refused.status)
