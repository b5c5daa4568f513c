"""One build after another, step by step: each instruction makes an unnamed image of the one before, or finds it in the cache.

A command runs in a container that carries ``LABEL``; ``remove_leftovers`` takes those away at start, so that a daemon that was
killed leaves nothing. The cache is a file of keys (parent, instruction, content) to image ids, believed only while the
image exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import posixpath
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fleet.builder import files
from fleet.builder.dockerfile import Instruction, expand, parse_dockerfile, parse_instruction, split_words
from fleet.builder.ignore import parse_ignore
from fleet.containers import ContainerConfig, ContainerEngine, NetworkMode
from fleet.containers.layertar import has_directory, write_layer
from fleet.containers.layerview import copy_image_directory
from fleet.errors import ConflictError, NotFoundError, RuntimeFault, TooLargeError, UnsupportedError, UserError
from fleet.images import Image, ImageStore, UnpackLimits, host_platform
from fleet.images.authoring import Authored, LayerWriter
from fleet.images.changes import apply_changes
from fleet.images.inspect import image_inspect
from fleet.images.unpack import unpack_layer
from fleet.node_runtime.spec import ResourceLimits
from fleet.node_runtime.users import UnknownUserError, resolve_identity

__all__ = ["LABEL", "BuildOptions", "Builder", "CommandFailedFault", "remove_leftovers"]

LABEL: Final = "fleet.build"
CONTEXT_LIMITS: Final = UnpackLimits(bytes_max=8 << 30, file_bytes_max=8 << 30, entries_max=500_000)
_CACHE_MAX: Final = 10_000
_PROXIES: Final = frozenset(f"{k}_{e}" for k in ("http", "https", "ftp", "no", "all") for e in ("proxy",))
_CONFIG_KEYS: Final = (
    *("User", "Env", "Cmd", "Entrypoint", "Volumes", "WorkingDir", "OnBuild", "Labels", "ExposedPorts", "StopSignal"),
    *("Healthcheck", "Shell"),
)
Tell = Callable[[Any], None]
Pull = Callable[[str, Tell], Awaitable[Image]]


class CommandFailedFault(RuntimeFault):
    """A RUN command ended with ``code``."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a build is asked for."""

    tags: tuple[str, ...] = ()
    dockerfile: str = "Dockerfile"
    build_args: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    no_cache: bool = False
    pull: bool = False
    network: str = ""
    memory_bytes: int = 0
    shm_bytes: int = 0
    extra_hosts: tuple[str, ...] = ()
    platform: str = ""


@dataclass(slots=True)
class _Stage:
    image: Image | None
    config: dict[str, Any]
    args: dict[str, str] = field(default_factory=dict)
    command_set: bool = False


async def remove_leftovers(engine: ContainerEngine) -> None:
    """Remove containers of builds that ended with the daemon."""
    for container in engine.list():
        if LABEL in container.labels:
            await engine.remove(container.id, force=True, volumes=True)


def config_of(image: Image) -> dict[str, Any]:
    """The image's inner configuration in Docker's field names."""
    inner = image_inspect(image)["Config"]
    return {key: inner[key] for key in _CONFIG_KEYS if inner.get(key)}


class Builder:
    """Builds on one host. ``root`` holds the cache and what is being built."""

    def __init__(self, engine: ContainerEngine, images: ImageStore, root: Path, pull: Pull) -> None:
        self.engine = engine
        self.images = images
        self.root = root
        self.pull = pull
        self._cache: dict[str, str] | None = None

    def cache(self) -> dict[str, str]:
        """The cache as it is on disk; the first call also sweeps scratch of builds that were killed."""
        if self._cache is None:
            shutil.rmtree(self.root / "scratch", ignore_errors=True)
            (self.root / "scratch").mkdir(parents=True, mode=0o700)
            self._cache = {}
            with contextlib.suppress(OSError, ValueError):
                self._cache = dict(json.loads((self.root / "cache.json").read_bytes()))
        return self._cache

    def remember(self, key: str, image_id: str) -> None:
        """Note what a step made; the oldest are forgotten."""
        cache = self.cache()
        cache[key] = image_id
        while len(cache) > _CACHE_MAX:
            del cache[next(iter(cache))]
        fresh = self.root / "cache.new"
        fresh.write_text(json.dumps(cache))
        fresh.replace(self.root / "cache.json")

    async def prune(self) -> tuple[list[str], int]:
        """Forget the cache, and remove its images that have no name and no container; ids and bytes."""
        known, removed, freed = set(self.cache().values()), [], 0
        for image_id in known:
            with contextlib.suppress(NotFoundError, ConflictError):
                image = self.images.get(image_id)
                if not image.references and image_id not in self.engine.images_in_use():
                    await self.images.remove(image_id, force=True, in_use=self.engine.images_in_use)
                    removed.append(image_id)
                    freed += image.layer_sizes[-1] if image.layer_sizes else 0
        self.cache().clear()
        (self.root / "cache.json").unlink(missing_ok=True)
        return removed, freed

    async def build(self, stream: AsyncIterator[bytes], options: BuildOptions, tell: Tell) -> Image:
        """Receive the context and build. Cancels safely: its container and scratch go."""
        self.cache()
        scratch = Path(tempfile.mkdtemp(dir=self.root / "scratch"))
        try:
            await self._receive(stream, scratch, options)
            with self.images.holding() as hold:
                return await _Build(self, options, tell, scratch, hold).run()
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True))

    async def _receive(self, stream: AsyncIterator[bytes], scratch: Path, options: BuildOptions) -> None:
        size = 0
        with (scratch / "context.tar").open("xb") as file:
            async for data in stream:
                size += len(data)
                if size > CONTEXT_LIMITS.bytes_max:
                    raise TooLargeError(f"the build context is larger than {CONTEXT_LIMITS.bytes_max} bytes")
                await asyncio.to_thread(file.write, data)
        context = scratch / "context"

        def unpack() -> None:
            context.mkdir()
            with (scratch / "context.tar").open("rb") as tar:
                unpack_layer(tar, into=context, lowers=(), limits=CONTEXT_LIMITS)
            (scratch / "context.tar").unlink()
            ignore = context / ".dockerignore"
            if ignore.is_file() and not ignore.is_symlink():
                keep = frozenset({".dockerignore", posixpath.normpath(options.dockerfile)})
                files.remove_ignored(context, parse_ignore(ignore.read_bytes()), keep=keep)

        await asyncio.to_thread(unpack)


class _Build:
    def __init__(
        self, builder: Builder, options: BuildOptions, tell: Tell, scratch: Path, hold: Callable[[str], None]
    ) -> None:
        self._builder = builder
        self._hold = hold
        self._options = options
        self._tell = tell
        self._scratch = scratch
        self._stages: list[tuple[str, _Stage]] = []
        self._globals: dict[str, str] = {}

    @property
    def _stage(self) -> _Stage:
        return self._stages[-1][1]

    async def run(self) -> Image:
        name = self._options.dockerfile
        try:
            body = await asyncio.to_thread(files.locate(self._scratch / "context", name).read_bytes)
        except OSError as cause:
            raise UserError(f"Cannot locate specified Dockerfile: {name}") from cause
        steps = parse_dockerfile(body)
        for number, step in enumerate(steps, 1):
            if step.name == "FROM" and self._stages and self._is_target():
                break
            self._tell({"stream": f"Step {number}/{len(steps)} : {step.shown}\n"})
            await self._checked(step)
            if self._stages and self._stage.image is not None:
                self._tell({"stream": f" ---> {self._stage.image.id[7:19]}\n"})
        if self._options.target and not self._is_target():
            raise UserError(f"failed to reach build target {self._options.target} in Dockerfile")
        if self._options.labels:
            pairs = " ".join(shlex.quote(f"{k}={v}") for k, v in sorted(self._options.labels.items()))
            await self._configure(parse_instruction(f"LABEL {pairs}", line=len(steps)), f"LABEL {pairs}")
        image = self._stage.image
        if image is None:
            raise UserError("No image was generated. Is your Dockerfile empty?")
        for tag in self._options.tags:
            await self._builder.images.tag(image.id, tag)
        return image

    def _is_target(self) -> bool:
        target = self._options.target.lower()
        return bool(target) and target in (self._stages[-1][0], str(len(self._stages) - 1))

    async def _checked(self, step: Instruction) -> None:
        try:
            await self._do(step)
        except UserError as cause:
            raise cause if str(cause).startswith("dockerfile line") else step.wrong(str(cause)) from cause

    async def _do(self, step: Instruction) -> None:
        match step.name:
            case "FROM":
                await self._from(step)
            case "ARG":
                self._arg(step)
            case "RUN":
                await self._run(step)
            case "COPY" | "ADD":
                await self._copy(step)
            case "MAINTAINER":
                await self._commit(step.shown, self._stage.config, author=step.text)
            case "CMD" | "ENTRYPOINT" | "SHELL" | "HEALTHCHECK" | "ONBUILD":
                await self._configure(step, f"{step.name} {step.text}")
            case _:
                await self._configure(step, self._expanded(step))

    def _expanded(self, step: Instruction) -> str:
        """The instruction as a line for ``apply_changes``, variables filled in."""
        env = self._env()
        if step.name in ("WORKDIR", "USER", "STOPSIGNAL"):
            return f"{step.name} {expand(step.text, env, escape=step.escape)}"
        if step.words is not None:
            return f"{step.name} {json.dumps([expand(word, env) for word in step.words])}"
        if step.name in ("ENV", "LABEL") and "=" not in step.text.split()[0]:
            key, _, value = step.text.partition(" ")
            words = [f"{key}={expand(value.strip(), env, escape=step.escape)}"]
        else:
            words = split_words(step.text, env, escape=step.escape)
        return f"{step.name} {' '.join(shlex.quote(word) for word in words)}"

    def _env(self) -> dict[str, str]:
        own = dict(item.partition("=")[::2] for item in self._stage.config.get("Env") or ())
        return {**self._stage.args, **own}

    async def _configure(self, step: Instruction, line: str) -> None:
        config = apply_changes(self._stage.config, [line])
        if step.name == "CMD":
            self._stage.command_set = True
        if step.name == "ENTRYPOINT" and not self._stage.command_set:
            config.pop("Cmd", None)
        await self._commit(step.shown, config, key=line)

    def _arg(self, step: Instruction) -> None:
        env = self._env() if self._stages else self._globals
        for word in split_words(step.text, env, escape=step.escape):
            name, equals, default = word.partition("=")
            value = self._options.build_args.get(name, default if equals else None)
            if self._stages:
                value = self._globals.get(name) if value is None else value
                if value is not None:
                    self._stage.args[name] = value
            elif value is not None:
                self._globals[name] = value

    async def _from(self, step: Instruction) -> None:
        words = split_words(step.text, self._globals, escape=step.escape)
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
            raise UserError("requires either one or three arguments: FROM image [AS name]")
        for flag, value in (*step.flags, *((("platform", self._options.platform),) if self._options.platform else ())):
            here = host_platform()
            wanted = expand(value, self._globals)
            if flag != "platform":
                raise UserError(f"unknown flag: {flag}")
            if wanted.split("/")[:2] != [here.os, here.architecture]:
                raise UnsupportedError(f"platform {wanted} is not this host's ({here.os}/{here.architecture})")
        image = None if words[0] == "scratch" else await self._image(words[0], pull=self._options.pull)
        config = config_of(image) if image else {}
        triggers = config.pop("OnBuild", [])
        self._stages.append((words[2].lower() if len(words) == 3 else "", _Stage(image, config)))
        for text in triggers:
            trigger = parse_instruction(text, line=step.line)
            if trigger.name in ("FROM", "ONBUILD", "MAINTAINER"):
                raise UserError(f"{trigger.name} isn't allowed as an ONBUILD trigger")
            await self._do(trigger)

    async def _image(self, name: str, *, pull: bool = False) -> Image:
        for known, stage in self._stages:
            if known and known == name.lower() and stage.image is not None:
                return stage.image
        if not pull:
            with contextlib.suppress(NotFoundError):
                image = self._builder.images.get(name)
                self._hold(image.id)
                return image
        image = await self._builder.pull(name, self._tell)
        self._hold(image.id)
        return image

    async def _commit(
        self,
        created_by: str,
        config: dict[str, Any],
        *,
        key: str = "",
        layer: LayerWriter | None = None,
        author: str = "",
    ) -> None:
        full = self._key(key or created_by)
        image = self._cached(full)
        if image is None:
            step = Authored(config=config, created_by=created_by, author=author)
            image = await self._builder.images.derive(self._stage.image, step, layer, hold=self._hold)
            await asyncio.to_thread(self._builder.remember, full, image.id)
        self._stage.image, self._stage.config = image, config

    def _key(self, text: str) -> str:
        parent = self._stage.image.id if self._stage.image else "scratch"
        pieces = [parent, json.dumps(self._stage.config, sort_keys=True), text]
        return hashlib.sha256(json.dumps(pieces).encode("utf-8", "surrogatepass")).hexdigest()

    def _cached(self, key: str) -> Image | None:
        if self._options.no_cache or key not in self._builder.cache():
            return None
        try:
            image = self._builder.images.get(self._builder.cache()[key])
        except NotFoundError:
            return None
        self._hold(image.id)
        self._tell({"stream": " ---> Using cache\n"})
        return image

    async def _run(self, step: Instruction) -> None:
        if step.flags:
            raise UnsupportedError(f"--{step.flags[0][0]} needs BuildKit, which is not supported here")
        parent = self._stage.image
        if parent is None:
            raise UserError("there is nothing to run in an image made from scratch: COPY something first")
        words = step.words
        if words is None:
            script = step.text
            if step.heredocs:
                first = step.heredocs[0]
                alone = len(step.text.split()) == 1
                script = first.text if alone else step.text + "\n"
                if alone and script.startswith("#!"):
                    raise UnsupportedError(
                        "a heredoc with #! is not supported: name the interpreter, RUN python3 <<EOF"
                    )
                if not alone:
                    script += "".join(f"{doc.text}{doc.name}\n" for doc in step.heredocs)
            words = (*(self._stage.config.get("Shell") or ("/bin/sh", "-c")), script)
        proxies = {k: v for k, v in self._options.build_args.items() if k.lower() in _PROXIES}
        own = {item.partition("=")[0] for item in self._stage.config.get("Env") or ()}
        args = {k: v for k, v in self._stage.args.items() if k not in own}
        key = json.dumps(["RUN", words, sorted(args.items())])
        if (image := self._cached(self._key(key))) is not None:
            self._stage.image = image
            return
        env = tuple(f"{k}={v}" for k, v in {**proxies, **args}.items())
        container_id = await self._start(step, parent, words, env)
        try:
            engine = self._builder.engine
            upper, ids = engine.directory(container_id) / "upper", engine.get(container_id).ids
            created_by = " ".join(words)
            await self._commit(
                created_by, self._stage.config, key=key, layer=lambda sink: write_layer(upper, sink, ids)
            )
        finally:
            await asyncio.shield(self._builder.engine.remove(container_id, force=True, volumes=True))

    async def _start(self, step: Instruction, parent: Image, words: tuple[str, ...], env: tuple[str, ...]) -> str:
        engine, options = self._builder.engine, self._options
        modes = {"": NetworkMode.BRIDGE, "default": NetworkMode.BRIDGE, "bridge": NetworkMode.BRIDGE}
        mode = modes.get(options.network) or {"none": NetworkMode.NONE, "host": NetworkMode.HOST}.get(options.network)
        if mode is None:
            raise UnsupportedError(f"network mode {options.network!r} is not supported in builds: bridge, host or none")
        config = ContainerConfig(
            image=parent.id,
            entrypoint=words,
            command=(),
            env=env,
            labels={LABEL: "1"},
            network_mode=mode,
            extra_hosts=options.extra_hosts,
            resources=ResourceLimits(memory_bytes=options.memory_bytes),
            shm_size_bytes=options.shm_bytes or 64 << 20,
        )
        container = await engine.create(config)
        try:
            self._tell({"stream": f" ---> Running in {container.id[:12]}\n"})
            await engine.start(container.id)
            async for line in engine.logs(container.id, follow=True):
                self._tell({"stream": line.data.decode("utf-8", "replace")})
            ended = await engine.wait(container.id)
        except BaseException:
            await asyncio.shield(engine.remove(container.id, force=True, volumes=True))
            raise
        if ended.code:
            await engine.remove(container.id, force=True, volumes=True)
            command = " ".join(words)
            raise CommandFailedFault(
                f"dockerfile line {step.line}: The command '{command}' returned a non-zero code: {ended.code}",
                ended.code,
            )
        return container.id

    async def _copy(self, step: Instruction) -> None:
        env = self._env()
        if step.words is not None:
            words = [expand(word, env, escape=step.escape) for word in step.words]
        else:
            words = split_words(step.text, env, escape=step.escape)
        if len(words) < 2:
            raise UserError("requires at least two arguments: sources and a destination")
        flags = {name: expand(value, env, escape=step.escape) for name, value in step.flags}
        if unknown := flags.keys() - ({"chown", "chmod", "from"} if step.name == "COPY" else {"chown", "chmod"}):
            raise UnsupportedError(f"--{min(unknown)} is not supported here")
        *sources, target = words
        work = self._stage.config.get("WorkingDir") or "/"
        goal = posixpath.normpath(posixpath.join("/", work, target))
        parent = self._stage.image
        lowers = parent.layer_dirs if parent else ()
        into = target.endswith(("/", ".")) or len(sources) > 1 or (bool(lowers) and has_directory(lowers, goal))
        if len(sources) > 1 and not target.endswith(("/", ".")):
            raise UserError("with more than one source the destination must be a directory and end with a /")
        origin = await self._origin(flags["from"]) if "from" in flags else None
        items = await asyncio.to_thread(
            self._items, step, sources, goal, into=into, flags=flags, origin=origin, env=env
        )
        digest = await asyncio.to_thread(files.digest_of, items)
        created_by = f"{step.name} {digest[:12]} in {goal}"
        await self._commit(
            created_by,
            self._stage.config,
            key=f"{step.shown} {goal} {digest}",
            layer=lambda sink: files.write_items(items, sink),
        )

    async def _origin(self, name: str) -> Image:
        if name.isdecimal() and int(name) < len(self._stages) - 1:
            image = self._stages[int(name)][1].image
            if image is None:
                raise UserError(f"stage {name} is empty")
            return image
        return await self._image(name)

    def _items(
        self,
        step: Instruction,
        sources: list[str],
        goal: str,
        *,
        into: bool,
        flags: Mapping[str, str],
        origin: Image | None,
        env: Mapping[str, str],
    ) -> list[files.Item]:
        root = self._scratch / "context"
        if origin is not None:
            root = self._scratch / origin.id[7:]
            if not root.exists():
                root.mkdir()
                copy_image_directory(origin.layer_dirs, "/", root)
        owner = self._owner(flags["chown"]) if "chown" in flags else (None if origin else (0, 0))
        mode = int(flags["chmod"], 8) & 0o7777 if flags.get("chmod", "").isdecimal() else None
        if "chmod" in flags and mode is None:
            raise UserError(f"--chmod={flags['chmod']}: give an octal number")
        base = goal.lstrip("/")
        items: list[files.Item] = []
        documents = {f"<<{doc.name}": doc for doc in step.heredocs}
        for source in sources:
            if source.startswith(("http://", "https://", "git@", "git://")):
                raise UnsupportedError(f"{source}: fetching in a build is not supported: download it into the context")
            found_doc = documents.get(source.replace("<<-", "<<", 1))
            if found_doc is not None:
                path = Path(tempfile.mkdtemp(dir=self._scratch)) / found_doc.name
                path.write_text(found_doc.text if found_doc.literal else _filled(found_doc.text, env))
                path.chmod(0o644)
                name = posixpath.join(base, path.name) if into else base
                items += files.collect(path, name, owner=owner, mode=mode)
                continue
            names = files.select(root, source)
            if not names:
                raise UserError(f"no source files were specified: nothing fits {source}")
            for found in names:
                try:
                    path = files.locate(root, found)
                    status_is_directory = path.is_dir()
                    path.lstat()
                except OSError as cause:
                    raise UserError(f"{step.name} failed: file not found in build context: {found}") from cause
                if status_is_directory:
                    items += files.collect(path, base, owner=owner, mode=mode)
                elif step.name == "ADD" and files.is_tar(path):
                    unpacked = Path(tempfile.mkdtemp(dir=self._scratch))
                    with path.open("rb") as tar:
                        unpack_layer(tar, into=unpacked, lowers=(), limits=CONTEXT_LIMITS)
                    items += files.collect(unpacked, base, owner=owner if "chown" in flags else None, mode=mode)[
                        bool(base) :
                    ]
                else:
                    name = posixpath.join(base, posixpath.basename(found)) if into else base
                    items += files.collect(path, name, owner=owner, mode=mode)
        return items

    def _owner(self, text: str) -> tuple[int, int]:
        user, _, group = text.partition(":")
        if user.isdecimal() and (not group or group.isdecimal()):
            return int(user), int(group or user)
        etc = Path(tempfile.mkdtemp(dir=self._scratch))
        if self._stage.image is not None:
            copy_image_directory(self._stage.image.layer_dirs, "/etc", etc)
        found = [p.read_bytes() if p.is_file() and not p.is_symlink() else b"" for p in (etc / "passwd", etc / "group")]
        try:
            identity = resolve_identity(text, [], passwd=found[0], group=found[1])
        except UnknownUserError as cause:
            raise UserError(f"--chown={text}: {cause}") from cause
        return identity.uid, identity.gid


def _filled(text: str, env: Mapping[str, str]) -> str:
    """A heredoc with variables filled in; quotes are text there."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("\\\\$", "\\$")
    return expand(f'"{quoted}"', env)
