"""The versions of the model: the one that is asked, and those that still answer.

A version is one Triton server of one export.  Requests go to the current one; a switch changes which that is
between two requests, and the one before goes on with what it has under way.  Everything here happens in
the event loop's own thread, so that taking a version and counting a request on it is one act.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.gateway.errors import GatewayError, unavailable
from pipeline.gateway.settings import VersionSettings

GRACE_S = 2.0  # for a client to take what it is being sent when the time of its request is over


class Leash:
    """Cuts a client off that does not take its answer: it would hold its place for ever."""

    def __init__(self, cut: Callable[[], object], seconds: float) -> None:
        self._cut = cut
        self.pull(seconds)

    def pull(self, seconds: float) -> None:
        """The request's time is over in so many seconds."""
        self._timer = asyncio.get_running_loop().call_later(seconds + GRACE_S, self._cut)

    def drop(self) -> None:
        self._timer.cancel()


@dataclass(eq=False)
class Model:
    """One of Triton's models, and what is under way on it.

    ``limits`` holds the running time limit of each request that waits for Triton: bringing one
    forward wakes the request.  ``leashes`` are those of all requests, those whose client is being sent
    something among them.  ``fault`` says in words why the model cannot be asked.
    """

    name: str
    fault: str = ""
    lived: float = 0.0  # loop time of its last token
    under_way: int = 0
    ended: str = ""  # why requests were given up
    endings: int = 0  # how often: those that came after the last are not meant
    limits: set[asyncio.Timeout] = field(default_factory=set)
    leashes: set[Leash] = field(default_factory=set)

    def give_up(self, why: str) -> None:
        """End what is under way here with an error that says why."""
        self.ended, self.endings = why, self.endings + 1
        now = asyncio.get_running_loop().time()
        for limit in self.limits:
            if not limit.expired():  # its request has been woken already
                limit.reschedule(now)
        for leash in self.leashes:
            leash.drop()
            leash.pull(0)

    @contextlib.contextmanager
    def leashed(self, cut: Callable[[], object], seconds: float) -> Iterator[None]:
        """For the time of a request: ``cut`` is called where it goes on long after ``seconds``, or after giving up."""
        leash = Leash(cut, seconds)
        self.leashes.add(leash)
        try:
            yield
        finally:
            leash.drop()
            self.leashes.discard(leash)


class Version:
    """One Triton, with its models: those behind the names that clients use."""

    def __init__(self, settings: VersionSettings, fault: str = "") -> None:
        self.settings = settings
        names = sorted({route["model"] for route in settings.models.values()})
        self.models = {name: Model(name, fault) for name in names}

    @property
    def identity(self) -> str:
        return self.settings.identity

    @property
    def under_way(self) -> int:
        """Requests that have been taken and are not over."""
        return sum(model.under_way for model in self.models.values())

    @property
    def fault(self) -> str:
        """What is wrong, and with which of several models; empty where all answer."""
        faults = {name: model.fault for name, model in self.models.items() if model.fault}
        several = len(self.models) > 1
        return "; ".join(f"{name}: {fault}" if several else fault for name, fault in faults.items())

    def answers(self) -> bool:
        """Whether there is a model that can be asked."""
        return any(not model.fault for model in self.models.values())

    def give_up(self, why: str) -> None:
        """End what is under way on all models."""
        for model in self.models.values():
            model.give_up(why)

    def state(self) -> dict[str, Any]:
        """For the control socket."""
        return {
            "identity": self.identity,
            "address": self.settings.address,
            "under_way": self.under_way,
            "fault": self.fault,
            "answers": self.answers(),
        }


class Versions:
    """Which version is asked."""

    def __init__(self, first: VersionSettings | None = None) -> None:
        self.current: Version | None = None
        self.leaving: list[Version] = []
        self.closing = False
        self.created = int(time.time())
        if first is not None:
            self.current = Version(first, fault="it has not answered yet")

    def models(self) -> dict[str, dict[str, str]]:
        """The names that clients may use."""
        return self.current.settings.models if self.current else {}

    def fingerprint(self) -> str:
        """What OpenAI's ``system_fingerprint`` is here: it changes with the model that answers."""
        return f"lifecycle-{self.current.identity[:12]}" if self.current else "lifecycle"

    def ready(self, model: str | None = None) -> str:
        """Empty where requests are answered, by the model of this name or by any; else why they are not."""
        if self.closing:
            return "the gateway is shutting down"
        if self.current is None:
            return "no model is deployed yet"
        if model is None:
            fault = "" if self.current.answers() else self.current.fault
        else:
            fault = self.current.models[self.route(model)["model"]].fault
        return f"the model does not answer: {fault}" if fault else ""

    def take(self, name: str, version: Version | None = None) -> tuple[Version, Model, dict[str, str]]:
        """The version and model to ask and the route for a model's name, counted as under way: :meth:`release` it.

        Of the current version, or of ``version``, which has it.  Raises :class:`GatewayError`: 404 for an unknown name, 503 while
        nobody answers.
        """
        if version is None:
            fault = self.ready() or self.ready(name)
            if fault:
                raise unavailable(fault)
        route = self.route(name, version)
        taken = version or self.current
        assert taken is not None
        model = taken.models[route["model"]]
        model.under_way += 1
        return taken, model, route

    def route(self, name: str, version: Version | None = None) -> dict[str, str]:
        """Where a name leads, now or in ``version``.  Raises :class:`GatewayError` (404) for one that is not served."""
        known = version.settings.models if version else self.models()
        if name not in known:
            raise GatewayError(
                404,
                f"the model {name!r} does not exist; there is {', '.join(sorted(known)) or 'none'}",
                code="model_not_found",
                param="model",
                reason="not_found",
            )
        return known[name]

    def release(self, version: Version, model: Model) -> None:
        """A request of this version's model is over."""
        model.under_way -= 1
        if version in self.leaving and not version.under_way:
            self.leaving.remove(version)

    def switch(self, version: Version) -> Version | None:
        """Ask this version from now on; returns the one before, which finishes what it has."""
        before, self.current = self.current, version
        self.created = int(time.time())
        if before is not None and before.under_way:
            self.leaving.append(before)
        return before

    def under_way(self) -> int:
        """Requests that have been taken and are not over, on all versions."""
        return sum(version.under_way for version in self._all())

    def give_up(self, why: str) -> None:
        """End what is under way on all versions."""
        for version in self._all():
            version.give_up(why)

    def _all(self) -> list[Version]:
        return [*self.leaving, *([self.current] if self.current else [])]
