"""A job: what it reads and writes, the function that does it, and the one command line that all jobs share."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from intently.core.config import Config
from intently.core.errors import IntentlyError
from intently.core.schema import Table
from intently.core.workspace import Artifact, Stage, Workspace, open_stage, version_of


@dataclass(frozen=True)
class Planned:
    """One artifact that a job would write."""

    name: str
    version: str
    stands: bool


@dataclass(frozen=True)
class Job:
    """A stage of the pipeline.

    Attributes:
        name: the script's name.
        config: its config class.
        reads: artifacts that it reads.
        writes: artifact name → table (None for files); the first is what `run` returns.
        run: does the work.
        fingerprint: says what lies outside the workspace (source files), for the version; None where nothing does.
        optional: artifacts that it reads where they stand; one that does not leaves the version as if it were not named. One that it
            also writes grows: the new version of it, and of nothing else, depends on the standing one.
    """

    name: str
    config: type[Config]
    reads: tuple[str, ...]
    writes: Mapping[str, Table | None]
    run: Callable[[Any, Workspace], Artifact]
    fingerprint: Callable[[Any], str] | None = None
    optional: tuple[str, ...] = ()

    def stage(self, workspace: Workspace, name: str, config: Config) -> Stage:
        """The stage that writes artifact `name` from this job's inputs as they stand.

        Raises:
            MissingArtifactError: an input does not stand.
        """
        inputs = {read: workspace.artifact(read).version for read in self.reads}
        return open_stage(workspace, name, self.writes[name], inputs | self._standing(workspace, name) | self._sources(config), config)

    def execute(self, config: Config, workspace: Workspace) -> Artifact:
        """Run, unless everything that it would write stands already; then later stages read what stands.

        Raises:
            MissingArtifactError: an input does not stand.
        """
        stages = [self.stage(workspace, name, config) for name in self.writes]
        if stages and all(stage.finished for stage in stages):
            first, *_ = [stage.reuse() for stage in stages]
            return first
        return self.run(config, workspace)

    def plan(self, workspace: Workspace, config: Config, versions: Mapping[str, str]) -> list[Planned]:
        """What a run would write, given the versions (name → version) of its inputs, without running anything."""
        inputs = {read: versions[read] for read in self.reads} | self._sources(config)
        planned = []
        for name, table in self.writes.items():
            version = version_of(name, table, inputs | self._standing(workspace, name), config.identity())
            planned.append(Planned(name, version, workspace.stands(name, version)))
        return planned

    def _standing(self, workspace: Workspace, written: str) -> dict[str, str]:
        others = self.writes.keys() - {written}
        versions = {name: workspace.latest_version(name) for name in self.optional if name not in others}
        return {name: version for name, version in versions.items() if version}

    def _sources(self, config: Config) -> dict[str, str]:
        return {"(source)": self.fingerprint(config)} if self.fingerprint else {}


def describe(job: Job, config: Config, workspace: Workspace) -> str:
    """The resolved config, the inputs and the outputs of a job, as text."""
    lines = [f"job: {job.name}", "config:"]
    lines += [f"  {line}" for line in yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).splitlines()]
    versions = {read: workspace.latest_version(read) for read in job.reads}
    lines.append("reads:")
    lines += [f"  {name}@{version}" if version else f"  {name}: missing" for name, version in versions.items()]
    optional = {name: workspace.latest_version(name) for name in job.optional}
    lines += [f"  {name}@{version}" if version else f"  {name}: none, and none is needed" for name, version in optional.items()]
    lines.append("writes:")
    known = {name: version for name, version in versions.items() if version}
    if len(known) < len(versions):
        lines += [f"  {name}: version follows from the missing inputs" for name in job.writes]
    else:
        planned = job.plan(workspace, config, known)
        lines += [f"  {p.name}@{p.version}: {'stands' if p.stands else 'to be written'}" for p in planned]
    return "\n".join(lines)


def launch(
    job: Job,
    doc: str | None,
    arguments: Sequence[str] | None = None,
    describe: Callable[[Job, Any, Workspace], str] = describe,
) -> None:
    """The command line of a job: --config, --workspace, --set, --dry-run.

    Args:
        job: what to run.
        doc: the script's docstring, shown by --help.
        arguments: the command line without the program; None takes the process's own.
        describe: what --dry-run prints.
    """
    parser = argparse.ArgumentParser(prog=f"jobs/{job.name}.py", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file; defaults hold without one")
    parser.add_argument("--workspace", default="workspace", help="folder or object-store URI of the tables (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="override one setting, a.b=c; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config, the inputs and the outputs; do nothing")
    options = parser.parse_args(arguments)
    try:
        config = job.config.load(options.config, options.set)
        workspace = Workspace.open(options.workspace)
        if options.dry_run:
            print(describe(job, config, workspace))
            return
        start = time.monotonic()
        artifact = job.execute(config, workspace)
    except IntentlyError as error:
        sys.exit(f"{job.name}: {type(error).__name__}: {error}")
    manifest = artifact.manifest
    print(f"{job.name}: {artifact}, {manifest.rows} rows, {manifest.rejects} rejects, {time.monotonic() - start:.1f} s")
