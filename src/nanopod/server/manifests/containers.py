"""Containers and pods: command, environment, resources, mounts and probes, as far as a node without images has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from nanopod.model.endpoint import VolumeMount
from nanopod.server.manifests.around import Around, SecretKey
from nanopod.server.manifests.fields import Reader
from nanopod.server.manifests.resources import Asked, Query, both, read_placement, read_resources

VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}")
_REFERENCE: Final = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_BRACES: Final = re.compile(r"\{(?:port|host|model)\}")
"""What an engine's command line has for what it is given."""
_OURS: Final = "NANOPOD_"
WRITABLE: Final = ("/dev/shm", "/tmp", "/var/tmp")
"""Where every program of a node may write."""
START_S: Final = 600.0
PORT_DEFAULT: Final = 8080


@dataclass(frozen=True, slots=True)
class Mounted:
    """A directory that a container sees: files of a claim, a ConfigMap, a Secret, or an empty one."""

    path: str
    sub_path: str = ""
    read_only: bool = False
    claim: str = ""
    config_map: str = ""
    secret: str = ""
    items: Mapping[str, str] = field(default_factory=dict)
    """{key: file name}; {}: all keys by their own names."""


@dataclass(frozen=True, slots=True)
class Container:
    """What a container is, as far as it matters here. `at` is its path in the document."""

    at: str
    name: str = ""
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[SecretKey, ...] = ()
    whole_secrets: tuple[str, ...] = ()
    """Secrets all of whose pairs are variables."""
    port: int = 0
    """0: none was stated."""
    ready_path: str = ""
    start_s_max: float = START_S
    asked: Asked = Asked()
    mounts: tuple[Mounted, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """Command and arguments with `$(NAME)` replaced as Kubernetes does; `$(PORT)` is the port it will be given.

        Braces of the author (`{port}` in a program's text) are his own.
        """
        known = {"PORT": "{port}", **{name: _BRACES.sub(r"{\g<0>}", value) for name, value in self.env.items()}}
        return tuple(_expanded(_BRACES.sub(r"{\g<0>}", word), known) for word in (*self.command, *self.args))

    @property
    def plain_argv(self) -> tuple[str, ...]:
        """The same of a command that gets no port and whose braces nobody reads."""
        return tuple(_expanded(word, self.env) for word in (*self.command, *self.args))


def _expanded(word: str, known: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return known.get(found[1], found[0])

    return _REFERENCE.sub(value, word)


@dataclass(frozen=True, slots=True)
class Pod:
    """Containers and where they may run."""

    containers: tuple[Container, ...]
    query: Query
    account: str = ""
    volumes: tuple[VolumeMount, ...] = ()


def read_container(reader: Reader, around: Around, volumes: Mapping[str, Mounted]) -> Container:
    """One container with everything that its fields say."""
    found = Container(
        reader.path,
        reader.text("name"),
        reader.text("image"),
        reader.texts("command"),
        reader.texts("args"),
        asked=read_resources(reader),
        mounts=tuple(_mounts(reader, volumes)),
    )
    env: dict[str, str] = {}
    keys: list[SecretKey] = []
    whole: list[str] = []
    for source in reader.objects("envFrom"):
        _env_from(source, around, env, whole)
    for variable in reader.objects("env"):
        _variable(variable, around, env, keys)
    path, start_s = _probes(reader)
    found = replace(
        found, env=env, keys=tuple(keys), whole_secrets=tuple(whole), port=_port(reader), ready_path=path,
        start_s_max=start_s,
    )  # fmt: skip
    reader.ignored("nodes have no images to pull", "imagePullPolicy")
    reader.ignored("the command runs in a directory of its own", "workingDir")
    reader.ignored("processes run as the node's own user", "securityContext")
    reader.ignored("a worker is drained and then ended with SIGTERM", "lifecycle")
    reader.quietly("terminationMessagePath", "terminationMessagePolicy", "stdin", "tty", "stdinOnce")
    reader.done()
    return found


def _variable(one: Reader, around: Around, env: dict[str, str], keys: list[SecretKey]) -> None:
    name = one.text("name", required=True, fix="name the variable")
    if name and (not VARIABLE.fullmatch(name) or name.startswith(_OURS)):
        one.error("name", f"{name!r} cannot be set; a variable begins with a letter or _, and not with {_OURS}")
    source = one.object("valueFrom")
    if source is None:
        env[name] = _expanded(one.text("value"), env)
        one.done()
        return
    if one.has("value"):
        one.error("value", "a variable has value or valueFrom; leave one out")
    secret, config = source.object("secretKeyRef"), source.object("configMapKeyRef")
    source.ignored("a worker has no pod and no limits to show", "fieldRef", "resourceFieldRef")
    if secret is not None:
        _secret_key(secret, name, around, keys)
    if config is not None:
        value = _config_value(config, around)
        if value is not None:
            env[name] = value
    source.done()
    one.done()


def _secret_key(one: Reader, variable: str, around: Around, keys: list[SecretKey]) -> None:
    name = one.text("name", required=True, fix="name the Secret")
    key = one.text("key", required=True, fix="name the key of the Secret")
    optional = one.flag("optional")
    one.done()
    seen = around.secrets.get(name)
    if seen is not None and key in seen.keys:
        keys.append(SecretKey(variable, name, key))
    elif not optional and name and key:
        there = "does not exist; apply it first"
        if seen is not None:
            there = f"has the keys {', '.join(seen.keys) or 'none'}"
        one.error("key" if seen is not None else "name", f"Secret {name!r} {there}")


def _config_value(one: Reader, around: Around) -> str | None:
    name = one.text("name", required=True, fix="name the ConfigMap")
    key = one.text("key", required=True, fix="name the key of the ConfigMap")
    optional = one.flag("optional")
    one.done()
    seen = around.config_maps.get(name)
    if seen is not None and key in seen:
        return seen[key]
    if not optional and name and key:
        there = f"has the keys {', '.join(seen) or 'none'}" if seen is not None else "does not exist; apply it first"
        one.error("key" if seen is not None else "name", f"ConfigMap {name!r} {there}")
    return None


def _env_from(source: Reader, around: Around, env: dict[str, str], whole: list[str]) -> None:
    prefix = source.text("prefix")
    config, secret = source.object("configMapRef"), source.object("secretRef")
    source.done()
    for part, known, kind in ((config, around.config_maps, "ConfigMap"), (secret, around.secrets, "Secret")):
        if part is None:
            continue
        name, optional = part.text("name", required=True, fix=f"name the {kind}"), part.flag("optional")
        part.done()
        if name not in known:
            if not optional:
                part.error("name", f"{kind} {name!r} does not exist; apply it first")
        elif kind == "ConfigMap":
            env |= {prefix + key: value for key, value in around.config_maps[name].items() if VARIABLE.fullmatch(key)}
        elif prefix:
            source.error("prefix", "pairs of a Secret keep their names; leave the prefix out or use valueFrom")
        else:
            whole.append(name)


def _port(reader: Reader) -> int:
    ports = reader.objects("ports")
    found = 0
    for at, one in enumerate(ports):
        number = one.whole("containerPort", least=1, most=65_535)
        name = one.text("name")
        if name in ("h2c", "grpc"):
            one.warn("name", f"{name!r}: requests reach workers over HTTP/1.1; gRPC is not passed on")
        one.quietly("protocol", "hostPort", "hostIP")
        one.done()
        if at == 0:
            found = number or 0
        elif number:
            one.warn("containerPort", "is ignored: requests go to the first port")
    return found


def _probes(reader: Reader) -> tuple[str, float]:
    """(path that answers 200 when it is ready, seconds that a start may take)."""
    path, start_s = "", START_S
    for name in ("startupProbe", "readinessProbe"):
        probe = reader.object(name)
        if probe is None:
            continue
        http = probe.object("httpGet")
        if http is not None:
            path = http.text("path", "/")
            http.quietly("port", "scheme", "host", "httpHeaders")
            http.done()
        probe.ignored("readiness is asked for over HTTP, at the path of httpGet", "exec", "grpc")
        probe.quietly("tcpSocket", "timeoutSeconds", "successThreshold", "terminationGracePeriodSeconds")
        period, tries = probe.whole("periodSeconds"), probe.whole("failureThreshold")
        delay = probe.whole("initialDelaySeconds")
        probe.done()
        if name == "startupProbe":
            start_s = max(start_s, float((delay or 0) + (period or 10) * (tries or 3)))
    live = reader.object("livenessProbe")
    if live is not None:
        live.quietly(*live.value)  # a process that ends, or whose link is silent, is replaced in any case
    return path, start_s


# --- pods ---


def read_volumes(pod: Reader) -> dict[str, Mounted]:
    """The volumes of a pod by name, without a path yet."""
    found: dict[str, Mounted] = {}
    for one in pod.objects("volumes"):
        name = one.text("name", required=True, fix="name the volume")
        claim, config = one.object("persistentVolumeClaim"), one.object("configMap")
        secret, empty = one.object("secret"), one.object("emptyDir")
        made = Mounted("")
        if claim is not None:
            made = Mounted(
                "", claim=claim.text("claimName", required=True, fix="name the claim"), read_only=claim.flag("readOnly")
            )
            claim.done()
        elif config is not None:
            made = Mounted("", config_map=config.text("name", required=True, fix="name it"), items=_chosen(config))
        elif secret is not None:
            made = Mounted(
                "", secret=secret.text("secretName", required=True, fix="name the Secret"), items=_chosen(secret)
            )
        elif empty is not None:
            empty.quietly("medium", "sizeLimit")
            empty.done()
        else:
            kinds = [key for key in one.value if key != "name"]
            one.error(
                kinds[0] if kinds else "name",
                "is not available here; use persistentVolumeClaim, configMap, secret or emptyDir",
            )
        one.done()
        if name in found:
            one.error("name", f"{name!r} is there twice; rename one")
        found[name] = made
    return found


def _chosen(source: Reader) -> dict[str, str]:
    items = {}
    for item in source.objects("items"):
        key = item.text("key", required=True, fix="name the key")
        items[key] = item.text("path", required=True, fix="name the file")
        item.quietly("mode")
        item.done()
    source.quietly("defaultMode", "optional")
    source.done()
    return items


def _mounts(container: Reader, volumes: Mapping[str, Mounted]) -> Iterator[Mounted]:
    for one in container.objects("volumeMounts"):
        name = one.text("name", required=True, fix="name a volume of the pod")
        path = one.text("mountPath", required=True, fix="say where")
        sub_path, read_only = one.text("subPath"), one.flag("readOnly")
        one.quietly("mountPropagation", "recursiveReadOnly")
        one.done()
        if path and (not path.startswith("/") or ".." in path.split("/")):
            one.error("mountPath", f"{path!r} must be an absolute path without ..")
        if ".." in sub_path.split("/") or sub_path.startswith("/"):
            one.error("subPath", f"{sub_path!r} must be a path below the volume, without ..")
        if name and name not in volumes:
            one.error("name", f"there is no volume {name!r}; the pod has: {', '.join(volumes) or 'none'}")
        elif name and path:
            known = volumes[name]
            empty = not (known.claim or known.config_map or known.secret)
            if empty and not path.startswith(WRITABLE) and not container.problems.rejected:
                one.warn("mountPath", "is not made for an emptyDir: write below /tmp, or where the command starts")
            yield replace(known, path=path, sub_path=sub_path, read_only=read_only or known.read_only)


QUIET: Final = (
    "restartPolicy", "terminationGracePeriodSeconds", "dnsPolicy", "schedulerName", "enableServiceLinks",
    "automountServiceAccountToken", "priorityClassName", "topologySpreadConstraints", "hostIPC", "hostNetwork",
    "shareProcessNamespace", "imagePullSecrets", "runtimeClassName",
)  # fmt: skip
"""Fields of a pod that mean nothing on a node without pods."""


def read_pod(pod: Reader, around: Around, *, preset: frozenset[str] = frozenset()) -> tuple[Pod, dict[str, Mounted]]:
    """The pod's own fields; its `containers` are read with `first_container`. `preset`: accounts known to exist."""
    query = read_placement(pod)
    volumes = read_volumes(pod)
    account = pod.text("serviceAccountName") or pod.text("serviceAccount")
    if account and account not in around.accounts and account not in preset and account != "default":
        name = "serviceAccountName" if pod.has("serviceAccountName") else "serviceAccount"
        pod.warn(name, f"is ignored: there is no ServiceAccount {account!r}; apply it to attach its secrets")
        account = ""
    pod.quietly(*QUIET)
    pod.ignored("files are fetched before a worker starts, and volumes are mounted", "initContainers")
    pod.ignored("processes run as the node's own user", "securityContext")
    return Pod((), query, account), volumes


def first_container(pod: Reader, around: Around, volumes: Mapping[str, Mounted]) -> Container | None:
    """`containers[0]`; the others are ignored with a warning."""
    found = pod.objects("containers")
    for other in found[1:]:
        name = other.text("name")
        pod.problems.warn(other.path, f"container {name!r} is ignored: a worker is one process, that of containers[0]")
    return read_container(found[0], around, volumes) if found else None


def hardware(*parts: tuple[Asked, Query]) -> Query:
    """Requirements of everything that runs in one worker: what each asks for, added up, and where each may be."""
    total = Asked()
    query: dict[str, Any] = {}
    for asked, placed in parts:
        query = both(query, placed)
        total = Asked(
            total.cpus + asked.cpus, total.memory + asked.memory, total.gpus + asked.gpus, total.vendor or asked.vendor
        )
    return both(total.query, query)
