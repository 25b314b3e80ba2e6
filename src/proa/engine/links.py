# SPDX-License-Identifier: Apache-2.0
"""Links between containers, as ``--link peer:alias`` asks for them.

On the default bridge, which has no names, a link is a line in the linking container's /etc/hosts and a set of
environment variables; the line follows the peer to the address of its next start, the variables do not. On a
network of the user's a link is an alias that the resolver knows for the linking container alone
(``EndpointSettings.Links``): the peer need not exist, and what is here is only the reading of its text.

Source: Docker documentation, "Legacy container links"; Docker Engine 28, daemon/links, opts.ParseLink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from proa.engine.container import Container, Link
from proa.engine.registry import Registry
from proa.model.config import EndpointSettings, HostConfig
from proa.model.errors import Conflict, InvalidParameter, NoSuchContainer, NotFound, WrongState
from proa.model.network import Endpoint

DEFAULT_NETWORK = "bridge"
_UNDEFINED = "This would result in undefined behavior"
_NOT_PASSED_ON = ("HOME", "PATH")
_PROTOCOLS = ("tcp", "udp", "sctp")  # of two ports with one number, the order in which Docker names them


def parse_link(text: str) -> tuple[str, str]:
    """Return the peer and its alias: ``db:store``, ``db``, or ``/db:/web/store`` as inspect writes it.

    Raises InvalidParameter.
    """
    parts = text.split(":")
    if not text:
        raise InvalidParameter("empty string specified for links")
    if len(parts) > 2 or "" in parts:
        raise InvalidParameter(f"bad format for links: {text}")
    name = parts[0]
    if len(parts) == 1:
        return name, name
    if name.startswith("/"):
        return name[1:], parts[1].rpartition("/")[2]
    return name, parts[1]


def check_alias(alias: str) -> str:
    """Raise InvalidParameter for what cannot be a name in a hosts file."""
    if not alias or any(character.isspace() or character in "/#" for character in alias):
        raise InvalidParameter(f"bad format for links: invalid alias: {alias!r}")
    return alias


def parse_links(host: HostConfig, find_container: Callable[[str], Container]) -> tuple[Link, ...]:
    """Return the links of a container on the default bridge; () on networks of the user's.

    Raises InvalidParameter: a peer is not there, or the network mode has no links.
    """
    mode = host.network_mode
    if not host.links:
        return ()
    if mode == "host":
        raise InvalidParameter(
            f"conflicting options: host type networking can't be used with links. {_UNDEFINED}"
        )
    if mode.startswith("container:"):
        raise InvalidParameter(
            f"conflicting options: container type network can't be used with links. {_UNDEFINED}"
        )
    if mode != DEFAULT_NETWORK:
        return ()
    found: dict[str, Link] = {}
    for text in host.links:
        name, alias = parse_link(text)
        peer = _peer(name, find_container)
        found.setdefault(check_alias(alias), Link(peer=peer.id, alias=alias))
    return tuple(found.values())


def _peer(name: str, find_container: Callable[[str], Container]) -> Container:
    """Return whom a link leads to: the one whose network a peer has joined, in place of the peer."""
    try:
        peer = find_container(name)
    except NoSuchContainer as error:
        raise InvalidParameter(f"could not get container for {name}: {error.message}") from error
    mode = peer.host_config.network_mode
    if mode.startswith("container:"):
        return _peer(mode.removeprefix("container:"), find_container)
    if mode == "host":
        raise InvalidParameter(
            f"conflicting options: host type networking can't be used with links. {_UNDEFINED}"
        )
    return peer


def endpoint_links(name: str, settings: EndpointSettings) -> tuple[tuple[str, str], ...]:
    """Return the links on one network, each alias with the name it stands for. Raises InvalidParameter.

    On the default bridge they are the container's own matter: the docker command writes them twice.
    """
    if name == DEFAULT_NETWORK:
        return ()
    pairs = [parse_link(text) for text in settings.links or ()]
    return tuple((check_alias(alias), peer) for peer, alias in pairs)


def check_default_links(host: HostConfig, settings: EndpointSettings) -> None:
    """Raise InvalidParameter for a link that is only in the default bridge's endpoint."""
    for text in settings.links or ():
        if text not in (host.links or ()):
            raise InvalidParameter("links are only supported for user-defined networks")


# --- while a container starts and runs ---


def linked(container: Container, registry: Registry) -> list[tuple[Link, Container, Endpoint]]:
    """Return the links of a container with the peers and where these are, for its start.

    A peer that was removed has taken its link along. Raises WrongState: a peer does not run, or not there.
    """
    found = []
    for link in _links_on_default(container):
        peer = registry.find(link.peer)
        if peer is None:
            continue
        if not peer.is_alive:
            raise WrongState(
                f"Cannot link to a non running container: /{peer.name} AS /{container.name}/{link.alias}"
            )
        endpoint = _default_endpoint(peer)
        if endpoint is None:
            raise WrongState(f"container {peer.id} not attached to default bridge network")
        found.append((link, peer, endpoint))
    return found


def live_links(container: Container, registry: Registry) -> list[tuple[Link, Container, Endpoint]]:
    """As ``linked``, of a container that runs: without the peers that ended meanwhile."""
    found = []
    for link in _links_on_default(container):
        peer = registry.find(link.peer)
        endpoint = _default_endpoint(peer) if peer is not None else None
        if peer is not None and endpoint is not None:
            found.append((link, peer, endpoint))
    return found


def host_names(link: Link, peer: Container) -> str:
    """Return what the peer is called in a hosts file: alias, host name and name, each once."""
    return " ".join(dict.fromkeys(name for name in (link.alias, peer.config.hostname, peer.name) if name))


def link_env(found: Sequence[tuple[Link, Container, Endpoint]], parent: str) -> tuple[str, ...]:
    """Return the variables that tell a program of its peers. ``parent``: the name of its container."""
    return tuple(
        entry for link, peer, endpoint in found for entry in _variables(link, peer, endpoint, parent)
    )


def shown_links(container: Container, registry: Registry) -> list[str]:
    """Return HostConfig.Links as inspect shows it: ``/peer:/container/alias``."""
    peers = ((link, registry.find(link.peer)) for link in container.links)
    return [f"/{peer.name}:/{container.name}/{link.alias}" for link, peer in peers if peer is not None]


def shown_aliases(peer: Container, registry: Registry) -> list[str]:
    """Return the names that links gave a peer, as docker ps lists them: ``/container/alias``."""
    return [
        f"/{container.name}/{link.alias}"
        for container in registry.linking_to(peer.id)
        for link in container.links
        if link.peer == peer.id
    ]


def find_link(registry: Registry, text: str) -> tuple[Container, Link]:
    """Return the link of this name, ``/container/alias``. Raises Conflict, NotFound."""
    name, _, alias = text.strip("/").partition("/")
    if not alias:
        raise Conflict("Conflict, cannot remove the default link name of the container")
    parent = registry.find(name)
    if parent is None:
        raise NotFound(f"Cannot get parent {name} for link name /{name}/{alias}")
    for link in parent.links:
        if link.alias == alias:
            return parent, link
    raise NotFound(f"No such container: {text}")


def _links_on_default(container: Container) -> tuple[Link, ...]:
    """A container that was taken off the default bridge reaches none of its peers."""
    return container.links if DEFAULT_NETWORK in container.networking else ()


def _default_endpoint(peer: Container) -> Endpoint | None:
    settings = peer.networking.get(DEFAULT_NETWORK)
    ids = (settings.network_id,) if settings is not None else ()
    return next((endpoint for endpoint in peer.endpoints if endpoint.network_id in ids), None)


def _variables(link: Link, peer: Container, endpoint: Endpoint, parent: str) -> Iterator[str]:
    assert endpoint.address is not None, "the default bridge has IPv4"
    prefix = link.alias.upper().replace("-", "_")
    ports = _exposed(peer)
    for position, (number, protocol) in enumerate(ports):
        url = f"{protocol}://{endpoint.address.ip}:{number}"
        if position == 0:
            yield f"{prefix}_PORT={url}"
        own = f"{prefix}_PORT_{number}_{protocol.upper()}"
        yield from (
            f"{own}={url}",
            f"{own}_ADDR={endpoint.address.ip}",
            f"{own}_PORT={number}",
            f"{own}_PROTO={protocol}",
        )
    for first, last, protocol in _ranges(ports):
        own = f"{prefix}_PORT_{first}_{protocol.upper()}"
        url = f"{protocol}://{endpoint.address.ip}"
        yield from (
            f"{own}_START={url}:{first}",
            f"{own}_PORT_START={first}",
            f"{own}_END={url}:{last}",
            f"{own}_PORT_END={last}",
        )
    yield f"{prefix}_NAME=/{parent}/{link.alias}"
    for entry in peer.config.env or ():
        name, equals, value = entry.partition("=")
        if equals and name not in _NOT_PASSED_ON:
            yield f"{prefix}_ENV_{name}={value}"


def _exposed(peer: Container) -> list[tuple[int, str]]:
    """The exposed ports, published ones among them, the lowest first; TCP before UDP."""
    keys = {*(peer.config.exposed_ports or ()), *(peer.host_config.port_bindings or ())}
    ports = set()
    for key in keys:
        numbers, _, protocol = key.partition("/")
        first, _, last = numbers.partition("-")
        ports |= {(number, protocol or "tcp") for number in range(int(first), int(last or first) + 1)}
    return sorted(ports, key=lambda port: (port[0], _PROTOCOLS.index(port[1])))


def _ranges(ports: Sequence[tuple[int, str]]) -> Iterator[tuple[int, int, str]]:
    """The spans of neighbouring ports of one protocol."""
    for protocol in _PROTOCOLS:
        numbers = [number for number, of in ports if of == protocol]
        first = last = -1
        for number in (*numbers, -1):
            if number == last + 1 and last >= 0:
                last = number
                continue
            if last > first:
                yield first, last, protocol
            first = last = number
