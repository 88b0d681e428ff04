"""``--devices``: runs one worker process for each device, and restarts a process that ends, with backoff."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

from pipeq.contract.errors import SettingsError

from pipeq_worker.host import signals
from pipeq_worker.observe import log
from pipeq_worker.settings.read import Settings

logger = logging.getLogger(__name__)

#: Delay before the first restart, in seconds. It doubles with each further restart, up to ``BACKOFF_MAX_S`` ...
BACKOFF_S = 1.0
BACKOFF_MAX_S = 60.0
#: ... and starts over once a process has lived this long, in seconds.
HEALTHY_S = 60.0
#: How long a process may live beyond its drain limit before it is killed, in seconds.
KILL_AFTER_S = 30.0
#: Environment variable that tells a child the process id of its supervisor.
PARENT = "PIPEQ_SUPERVISOR"
#: Environment variable of the port of a process's metrics.
METRICS_PORT = "PIPEQ_METRICS__PORT"
#: Exit codes that a restart would only repeat, because the settings are wrong.
HOPELESS = frozenset({2})


def devices_of(spec: str) -> list[str]:
    """``auto`` -> every GPU, else the CPU; ``cpu``; ``0,1`` -> those GPUs.

    Raises:
        SettingsError: ``spec`` is none of these.
    """
    if spec == "auto":
        import torch

        return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    names = []
    for part in spec.split(","):
        if part.isdigit():
            names.append(f"cuda:{part}")
        elif part == "cpu" or part.startswith(("cuda:", "mps")):
            names.append(part)
        else:
            raise SettingsError(f"--devices {spec!r}: {part!r} is no device; write auto, cpu, or numbers like 0,1")
    return names


@dataclass
class _Child:
    device: str
    #: More variables of its environment.
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    restart_at: float = 0.0
    #: The exit code, once the process has ended for good.
    code: int | None = None


@dataclass
class _Supervisor:
    argv: list[str]
    settings: Settings
    children: list[_Child]
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> int:
        signals.on_stop(self.stopping.set, self._hurry)
        while not self.stopping.is_set():
            for child in self.children:
                self._look_after(child)
            if all(child.code is not None for child in self.children):
                return max(child.code or 0 for child in self.children)
            self.stopping.wait(0.2)
        return self._stop()

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.code is not None:
            return
        if child.process is None:
            if now >= child.restart_at:
                self._start(child)
            return
        code = child.process.poll()
        if code is None:
            if child.failures and now - child.started_at > HEALTHY_S:
                child.failures = 0
            return
        child.process = None
        if code in HOPELESS:
            child.code = code
            return
        # A process that was told to end by remote control or by a signal is restarted, too: its device would stay idle.
        delay = min(BACKOFF_S * 2**child.failures, BACKOFF_MAX_S)
        child.failures += 1
        child.restart_at = now + delay
        logger.error(
            "the worker on %s ended with %s; starting it again in %.0f s",
            child.device,
            _describe(code),
            delay,
            extra={"action": "restart", "device": child.device},
        )

    def _start(self, child: _Child) -> None:
        env = {**os.environ, **child.env, "PIPEQ_DEVICE": child.device, PARENT: str(os.getpid())}
        # In a session of its own, so that Ctrl-C reaches only the supervisor, which passes it on once.
        child.process = subprocess.Popen([sys.executable, "-m", "pipeq", *self.argv], env=env, start_new_session=True)
        child.started_at = time.monotonic()
        logger.info(
            "started a worker on %s, process %d",
            child.device,
            child.process.pid,
            extra={"action": "start", "device": child.device},
        )

    def _hurry(self) -> None:
        self.stopping.set()
        for child in self.children:
            if (process := child.process) is not None:
                process.send_signal(signal.SIGQUIT)

    def _stop(self) -> int:
        running = [child.process for child in self.children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self.settings.drain_s + KILL_AFTER_S
        for process in running:
            try:
                process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return max((process.returncode for process in running), default=0)


def supervise(devices: list[str], argv: list[str], settings: Settings) -> int:
    """Runs a worker process on each device until told to stop. Returns the exit code.

    Args:
        devices: such as ``["cuda:0", "cuda:1"]``.
        argv: this process's command line; the children get it without ``--devices``.
        settings: for the drain limit, the ports of the metrics, and the log.

    Raises:
        SettingsError: there are fewer ports for metrics than devices.
    """
    log.set_up(settings.log_level, settings.log_format)
    ports = metrics_ports(settings.metrics.port, len(devices))
    children = [
        _Child(device, {} if port is None else {METRICS_PORT: str(port)})
        for device, port in zip(devices, ports, strict=True)
    ]
    return _Supervisor(without_devices(argv[1:]), settings, children).run()


def metrics_ports(port: int | None, devices: int) -> list[int | None]:
    """Returns a port for the metrics of each device's process: consecutive ones; 0, any free port, stays 0.

    Raises:
        SettingsError: there are fewer ports than devices.
    """
    if not port:
        return [port] * devices
    if port + devices - 1 > 65535:
        raise SettingsError(
            f"metrics.port: {devices} devices need as many ports from {port}, and 65535 is the last one"
        )
    return [port + at for at in range(devices)]


def end_with_parent() -> None:
    """Ends this process when its supervisor dies. Does nothing in a worker that has no supervisor."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        logger.warning("the supervisor is gone; ending, too", extra={"action": "stop"})
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def without_devices(arguments: list[str]) -> list[str]:
    """Returns a command line without its ``--devices`` option."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--devices":
            skip = True
        elif not argument.startswith("--devices="):
            kept.append(argument)
    return kept


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
