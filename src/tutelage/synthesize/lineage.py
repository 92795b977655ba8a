"""Where a record comes from: on each record itself, and as a tree over the folders of builds.

A record made here has an `id`, the hash of its content, and a `lineage`: the operator and its version, the ids of its parents, the keys
of the requests that it was made by, who answered, and what it cost. What led to a request stands in the journal beside the records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.data.conversation import Json
from tutelage.errors import DataError
from tutelage.files.database import read_database
from tutelage.files.jsonl import read

JOURNAL = "journal.sqlite"
_SHORTEST_PREFIX = 4


@dataclass(frozen=True)
class Node:
    """Something that data were made of or became: a record, a request, or a prompt that came from outside.

    `facts` is the row, or what was asked and what came of it.
    """

    id: str
    kind: str
    where: str
    parents: tuple[str, ...]
    facts: Mapping[str, Json]


@dataclass(frozen=True)
class Family:
    """Every node of some folders by id. A record that stands in several files is one node, named by the first."""

    nodes: Mapping[str, Node]

    def find(self, name: str) -> Node:
        """Return the node with this id, or with the only id that begins so.

        Raises: DataError where there is none, or more than one.
        """
        if name in self.nodes:
            return self.nodes[name]
        alike = [one for one in self.nodes if len(name) >= _SHORTEST_PREFIX and one.startswith(name)]
        if len(alike) == 1:
            return self.nodes[alike[0]]
        said = f"{len(alike)} ids begin with {name!r}" if alike else f"there is no {name!r} among {len(self.nodes)} ids"
        raise DataError(said, mend="give a longer id, or the folders of the builds it comes from")

    def descendants(self, node: Node) -> list[Node]:
        """Return every node that `node` is a parent of, directly or through others, in no deeper order than that of the files."""
        reached = {node.id}
        while True:
            more = {one.id for one in self.nodes.values() if not reached.isdisjoint(one.parents)} - reached
            if not more:
                return [one for one in self.nodes.values() if one.id in reached and one.id != node.id]
            reached |= more


def read_family(folders: Sequence[Path]) -> Family:
    """Return what the records and journals of some folders say of one another.

    Raises: DataError when none of the folders holds a build.
    """
    nodes: dict[str, Node] = {}
    for folder in folders:
        for node in (*_records(folder), *_requests(folder)):
            nodes.setdefault(node.id, node)
    if not nodes:
        raise DataError(
            f"no record with a lineage is in {', '.join(map(str, folders))}",
            mend="give the folder that `tutelage generate ... --out` wrote",
        )
    for node in list(nodes.values()):
        for parent in node.parents:
            nodes.setdefault(parent, Node(parent, "source", _places(node).get(parent, ""), (), {}))
    return Family(nodes)


def _records(folder: Path) -> Iterator[Node]:
    for file in sorted(folder.glob("*.jsonl")):
        for number, row in enumerate(read(file), start=1):
            lineage = row.get("lineage")
            if isinstance(row.get("id"), str) and isinstance(lineage, Mapping):
                parents = (*lineage.get("requests", ()), *lineage.get("parents", ()))
                yield Node(row["id"], "record", f"{file}:{number}", parents, row)


def _requests(folder: Path) -> Iterator[Node]:
    journal = folder / JOURNAL
    if not journal.is_file():
        return
    database = read_database(journal)
    rows = database.execute(
        "SELECT r.key, r.endpoint, r.body, e.state, e.reason FROM requests r JOIN events e ON e.key = r.key "
        "WHERE e.number = (SELECT max(number) FROM events WHERE key = r.key)"
    )
    for key, endpoint, body, state, reason in rows:
        facts = {"endpoint": endpoint, "body": json.loads(body), "state": state, "reason": reason}
        yield Node(key, "request", str(journal), (), facts)
    database.close()


def _places(node: Node) -> dict[str, str]:
    """Return where the parents of a record stand."""
    lineage = node.facts.get("lineage")
    return dict(zip(lineage["parents"], lineage["where"], strict=False)) if isinstance(lineage, Mapping) else {}


def tree(family: Family, node: Node, *, depth: int = 0) -> Iterator[tuple[int, Node]]:
    """Yield `node` and what it was made of, with how deep each stands; what stands on its own way up is not entered again."""
    yield from _climb(family, node, depth, frozenset())


def _climb(family: Family, node: Node, depth: int, below: frozenset[str]) -> Iterator[tuple[int, Node]]:
    yield depth, node
    for parent in node.parents:
        if parent not in below and parent != node.id:
            yield from _climb(family, family.nodes[parent], depth + 1, below | {node.id})


def lineage_of(
    operator: str, *, version: int, parents: Mapping[str, str], requests: Iterable[str], **facts: Json
) -> dict[str, Json]:
    """Return the lineage of a record. `parents` are ids, each with where it stands."""
    return {
        "operator": operator,
        "version": version,
        "parents": list(parents),
        "where": list(parents.values()),
        "requests": list(requests),
        **facts,
    }
