"""An enrolled node that makes Flower's calls as it pleases: what an insider with a good key can do."""

import hashlib
import json
import os
import time

import httpx
from flwr.app import ConfigRecord
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.error_pb2 import Error
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as Header
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import RecordDict

from fedpeft.flower.fleet import Connection, Fleet
from tests.fedpeft.flower_world import wait_for


def name_of(content):
    return hashlib.sha256(content).hexdigest()


def part(kind, children, body):
    """A part with whatever head: children may be named twice, or not be there."""
    return f"{kind} {','.join(children)} {len(body)}\0".encode() + body


def chunk(data):
    return ArrayChunk(memoryview(data)).deflate()


def leaf(name):
    return ObjectTree(object_id=name)


def tree(content, *children):
    return ObjectTree(object_id=name_of(content), children=list(children))


class Stranger:
    """A node ``name`` of a world that speaks the Fleet API by hand."""

    def __init__(self, world, name, enrol=True):
        if enrol:
            world.enrol(name)
        files = [(world.folder / file).read_bytes() for file in ("ca.crt", f"{name}.key")]
        self.fleet = Fleet(Connection(world.outside, *files))
        self.fleet.open()
        self.client, self.number = self.fleet._client, self.fleet.node_id

    def close(self):
        self.fleet.close()

    def order(self):
        """The next message for this node."""
        self.fleet.beat()
        got = []

        def here():
            if (arrival := self.fleet.receive()) is not None:
                got.append(arrival)
            return got

        wait_for(here)
        return got[0]

    def facts(self, arrival, **changed):
        """The metadata of a reply that an honest node would make, or one that is not."""
        asked = arrival.header.metadata
        facts = {
            "run_id": asked.run_id,
            "src_node_id": self.number,
            "dst_node_id": 1,
            "reply_to_message_id": asked.message_id,
            "group_id": asked.group_id,
            "ttl": asked.ttl,
            "message_type": asked.message_type,
            "created_at": asked.created_at,
        }
        return Metadata(**{**facts, **changed})

    def announce(self, facts, announced, error=None):
        """The link's answer, or the status of its refusal."""
        said = Metadata()
        said.CopyFrom(facts)
        said.message_id = announced.object_id
        content = {"content": RecordDict()} if error is None else {"error": error}
        request = PushMessagesRequest(
            node=Node(node_id=self.number),
            messages_list=[Header(metadata=said, **content)],
            message_object_trees=[announced],
        )
        return self._call(self.client.PushMessages, request)

    def put(self, run, session, content, name=None):
        request = PushObjectRequest(
            node=Node(node_id=self.number),
            run_id=run,
            session_id=session,
            object_id=name or name_of(content),
            object_content=content,
        )
        answer = self._call(self.client.PushObject, request)
        return answer if isinstance(answer, int) else answer.stored

    def pull(self, run, name):
        request = PullObjectRequest(node=Node(node_id=self.number), run_id=run, object_id=name)
        return self.client.PullObject(request)

    def confirm(self, run, name):
        request = ConfirmMessageReceivedRequest(
            node=Node(node_id=self.number), run_id=run, message_object_id=name
        )
        self.client.ConfirmMessageReceived(request)

    def reply(self, arrival, record_tree, contents, **changed):
        """Announce and upload a message around a record; the link's answers."""
        facts = self.facts(arrival, **changed)
        children = [record_tree.object_id] if record_tree else []
        root = part("Message", children, Header(metadata=facts).SerializeToString(deterministic=True))
        answer = self.announce(facts, tree(root, *([record_tree] if record_tree else [])))
        if isinstance(answer, int):
            return [answer]
        wanted = set(answer.objects_to_push)
        parts = [content for content in (*contents, root) if name_of(content) in wanted]
        return [self.put(facts.run_id, answer.session_id, content) for content in parts]

    def error_reply(self, arrival):
        """An ordinary error."""
        facts, error = self.facts(arrival), Error(code=2, reason="X")
        root = part("Message", [], Header(metadata=facts, error=error).SerializeToString(deterministic=True))
        answer = self.announce(facts, tree(root), error)
        return [self.put(facts.run_id, answer.session_id, root) for _ in answer.objects_to_push]

    @staticmethod
    def _call(call, request):
        try:
            return call(request)
        except httpx.HTTPStatusError as error:
            return error.response.status_code


def payload(chunks, numbers, size):
    """A record with one payload that names its pieces by ``numbers``: its tree and all its parts."""
    names = list(dict.fromkeys(map(name_of, chunks)))
    body = {"dtype": "uint8", "shape": [size], "stype": "fedpeft.blob.v1", "arraychunk_ids": numbers}
    array = part("Array", names, json.dumps(body).encode())
    arrays = part("ArrayRecord", [name_of(array)], json.dumps({"payload": name_of(array)}).encode())
    facts = ConfigRecord({"round": 1, "salt": os.urandom(8)}).deflate()
    inside = {"facts": name_of(facts), "blob": name_of(arrays)}
    record = part("RecordDict", list(inside.values()), json.dumps(inside).encode())
    whole = tree(record, tree(facts), tree(arrays, tree(array, *map(leaf, names))))
    return whole, [*chunks, array, arrays, facts, record]


def poison(stranger, run, name, kind="train"):
    """Announce that a part has no children, in a message of one's own accord."""
    root = name_of(os.urandom(8))
    facts = Metadata(
        run_id=run,
        src_node_id=1,
        dst_node_id=1,
        ttl=600.0,
        message_type=kind,
        created_at=time.time(),
    )
    return stranger.announce(facts, ObjectTree(object_id=root, children=[leaf(name)]))
