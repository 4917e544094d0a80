"""The service on this machine until Ctrl-C.

    PYTHONPATH=platform RAY_AUTH_MODE=token python -m serve.local --workspace workspace

Starts Ray if none runs, deploys one replica behind Ray's Python proxy on the loopback interface, prints where the page is, and takes
everything down again at the end. The Python proxy answers a few hundred requests a second, is a child of Ray and dies with it; for HAProxy
`eval "$(python -m serve.haproxy)"` first. `--set` takes any setting of `ServeConfig`, as --set timeout_s=2.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import yaml
from intently.core.errors import ConfigError, IntentlyError
from intently.runtime.session import ray_session
from ray import serve as ray_serve

from serve.app import bind
from serve.settings import ServeConfig

HOST = "127.0.0.1"
SHIPPED = Path(__file__).with_name("config.yaml")


def application(
    workspace: str, event_log: str, overrides: Sequence[str] = (), replicas: int = 1, most_replicas: int | None = None
) -> ray_serve.Application:
    """The application over these tables; paths become absolute, for replicas need not have this process's working folder.

    Args:
        workspace: folder or URI of the tables.
        event_log: folder of the event log.
        overrides: further settings, as `field.subfield=value`.
        replicas: how many; with `most_replicas` the fewest.
        most_replicas: up to how many under load, by the rules of config.yaml; None keeps to `replicas`.
    Raises:
        ConfigError: a setting is wrong.
        MissingArtifactError: a table is not in the workspace.
    """
    root = workspace if "://" in workspace else str(Path(workspace).absolute())
    folder = Path(event_log).absolute()
    config = ServeConfig.load(None, [f"workspace={json.dumps(root)}", f"events.folder={json.dumps(str(folder))}", *overrides])
    if most_replicas is None:
        return bind(config, {"num_replicas": replicas})
    (deployment,) = yaml.safe_load(SHIPPED.read_text())["applications"][0]["deployments"]
    return bind(
        config, {"autoscaling_config": deployment["autoscaling_config"] | {"min_replicas": replicas, "max_replicas": most_replicas}}
    )


def deploy(app: ray_serve.Application, port: int) -> str:
    """Deploy on the running Ray, wait until it answers, and return the page's address.

    Raises:
        ConfigError: the port is taken.
    """
    _refuse_taken(port)
    # Metrics say what is asked; a line a request would drown everything else in the terminal.
    logging = {"enable_access_log": False, "log_level": "WARNING"}
    ray_serve.start(proxy_location="HeadOnly", http_options={"host": HOST, "port": port}, logging_config=logging)
    ray_serve.run(app, name="intently", route_prefix="/", logging_config=logging)
    return f"http://{HOST}:{port}/"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", default="workspace", help="folder or object-store URI of the tables (default: %(default)s)")
    parser.add_argument("--event-log", default="workspace/event_log", help="folder that events are appended to (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port on the loopback interface (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=1, help="how many replicas (default: %(default)s)")
    parser.add_argument("--most-replicas", type=int, help="let load start more, up to so many")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="one more setting, a.b=c; repeatable")
    options = parser.parse_args()
    stop = threading.Event()
    # The controller kills a proxy that is not ready within 5 s, which a busy laptop does not manage; Ray has no parameter for it.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    try:
        app = application(options.workspace, options.event_log, options.set, options.replicas, options.most_replicas)
        with ray_session():
            address = deploy(app, options.port)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            print(f"page: {address}\nAPI:  {address}docs\nCtrl-C ends the service", flush=True)
            stop.wait()
            print("ending …", flush=True)
            ray_serve.shutdown()
    except IntentlyError as error:
        sys.exit(f"serve: {type(error).__name__}: {error}")


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError("port", port, f"cannot listen there: {error.strerror}") from error


if __name__ == "__main__":
    main()
