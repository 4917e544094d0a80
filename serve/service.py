"""What the endpoints of one replica share: settings, state, event log, counters."""

from __future__ import annotations

from dataclasses import dataclass

from intently.core.workspace import Workspace

from serve.events import EventLog, EventWriter
from serve.recommend import Recommender
from serve.settings import ServeConfig
from serve.state import State
from serve.telemetry import Telemetry


@dataclass(frozen=True)
class Service:
    """One replica's parts."""

    config: ServeConfig
    recommender: Recommender
    events: EventWriter
    telemetry: Telemetry

    @classmethod
    def open(cls, config: ServeConfig, replica: str) -> Service:
        """Load the tables and open the event log.

        Raises:
            MissingArtifactError: a table does not stand in the workspace.
            WorkspaceError: the workspace or the event log cannot be used.
        """
        state = State.load(Workspace.open(config.workspace))
        telemetry = Telemetry(replica, state.versions)
        return cls(config, Recommender(state, telemetry), EventWriter(EventLog(config.event_log, config.dedupe_days)), telemetry)

    @property
    def state(self) -> State:
        """The tables in use."""
        return self.recommender.state
