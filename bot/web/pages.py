"""The operator's pages: their templates, their language and their response headers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp_jinja2
import jinja2
from aiohttp import web
from yarl import URL

from bot.admin.canary_standing import standing_text
from bot.admin.progress import MODEL_STATES, RUN_STATES, SILENT, model_state, outcome, progress_details
from bot.admin.status_labels import NAMES
from bot.i18n import Say, Translator, later
from bot.telegram.callback_data import REASONS, THUMBS
from bot.web.card_query import DECISIONS, UNREVIEWED
from bot.web.security import content_policy, set_cookie
from training.number_format import clock, size

LANGUAGE: Final = "language"
"""The name of the query parameter and of the cookie that hold the language chosen on a page."""

YEAR_SECONDS: Final = 365 * 86_400
TRIGGERS: Final = {
    "admin": later("admin"),
    "schedule": later("schedule"),
    "command": later("command line"),
    "web": later("review page"),
}
ANYBODY: Final = "web"
"""The name used for an operator who gave none."""

TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Operator:
    """The operator who sent a request.

    Attributes:
        name: The name given with the password, or "web".
        csrf: The token that the operator's forms send back.
        logged_in: Whether the operator has a session, and so can log out.
        in_telegram: Whether the session began in the Mini App.
        scheme: Telegram's colour scheme there, `light` or `dark`; otherwise empty.
    """

    name: str
    csrf: str
    logged_in: bool = False
    in_telegram: bool = False
    scheme: str = ""


OPERATOR: Final = web.RequestKey("operator", Operator)


class Pages:
    """Renders the operator's pages in the language of the request."""

    def __init__(self, translator: Translator) -> None:
        self._translator = translator

    def set_up(self, app: web.Application) -> None:
        """Prepare the templates of an application."""
        environment = aiohttp_jinja2.setup(
            app, loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
        )
        environment.filters |= {
            "when": _when,
            "clock": clock,
            "outcome": outcome,
            "standing": standing_text,
            "size": size,
            "model_state": model_state,
            "details": progress_details,
            "reviewer": _reviewer,
        }
        environment.globals |= {
            "names": NAMES,
            "run_states": RUN_STATES | MODEL_STATES,
            "triggers": TRIGGERS,
            "silent": SILENT,
            "reasons": REASONS,
            "decisions": DECISIONS,
            "unreviewed": UNREVIEWED,
            "thumbs": THUMBS,
            "languages": self._translator.languages,
        }

    def say(self, request: web.Request) -> Say:
        """Return the translator into the language chosen on a page or, by default, the browser's language."""
        chosen = request.query.get(LANGUAGE), request.cookies.get(LANGUAGE)
        return self._translator.to(*chosen, *_preferred(request))

    def text(self, request: web.Request, template: str, **context: Any) -> str:
        """Return the rendered text of a template; `context` is as in `render`."""
        context = {"here": request.rel_url, "say": self.say(request), "operator": request.get(OPERATOR), **context}
        return str(aiohttp_jinja2.render_string(template, request, context))

    def render(
        self, request: web.Request, template: str, *, status: int = 200, script: str = "", **context: Any
    ) -> web.Response:
        """Return a page.

        `context` contains the template's variables. If `here` is not among them, links to the page itself lead to the
        request's path and query. `script` is the address of a script that the page loads from elsewhere.
        """
        page = self.text(request, template, **context).encode()
        response = web.Response(
            body=page,
            status=status,
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": content_policy(request, page, interactive=True, script=script)},
        )
        if LANGUAGE in request.query:
            set_cookie(request, response, LANGUAGE, self.say(request).language, YEAR_SECONDS)
        return response

    def error(self, request: web.Request, error: web.HTTPException) -> web.Response:
        """Return a page that shows an error, with the navigation."""
        text, say = error.text or "", self.say(request)
        if text.startswith(f"{error.status}: "):  # aiohttp's own text
            text = say("There is nothing at this address.") if error.status == 404 else error.reason
        here = request.rel_url if request.method == "GET" else URL("/")
        return self.render(request, "error.html", status=error.status, number=error.status, text=text, here=here)


def see_other(location: str) -> web.Response:
    """Return a response that redirects the browser after a form was handled."""
    return web.Response(status=303, headers={"Location": location})


def local_path(path: str, otherwise: str = "/") -> str:
    """Return `path` if it is a path on this server, else `otherwise`; a link elsewhere must not be followed.

    Browsers interpret a path that begins with two slashes or backslashes as an address on another server.
    """
    return path if re.fullmatch(r"/(?![/\\])[!-~]*", path) else otherwise


def _preferred(request: web.Request) -> list[str]:
    """Return the languages in the Accept-Language header, most preferred first."""
    ranked = []
    for each in request.headers.get("Accept-Language", "").split(","):
        tag, _, quality = each.partition(";q=")
        try:
            ranked.append((-float(quality or 1), tag.strip()))
        except ValueError:
            continue
    return [tag for _, tag in sorted(ranked, key=lambda each: each[0])]


def _reviewer(name: str, say: Say) -> str:
    """Return the name of an operator, or a description of one who gave none."""
    return say("an operator") if name == ANYBODY else name


def _when(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S")


async def start_events(request: web.Request) -> web.StreamResponse:
    """Start a response of server-sent events, which proxies must not buffer, and return it."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    return response
