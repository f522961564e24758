# SPDX-License-Identifier: Apache-2.0
"""What real front ends sent, and what they must be answered: conversations in vhost_user_conversations/.

Each was recorded from the front end that its first line names, talking to this back end, while its guest loaded the
network driver, unloaded it, loaded it again and was switched off; QEMU was also migrated to a file and given more
memory. (DEVICE_STATE was not offered then, which test_migration.py has, nor was USO.) A line is one of

    > REQUEST FLAGS PAYLOAD DESCRIPTORS   what the front end sent: payload in hex or -, descriptors by kind or -
      COMMAND ...                         what the worker is told for it
    * EVENT ...                           what is emitted
    < REPLY                               what the front end is answered: the message in hex
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from pathlib import Path

import pytest
from vhost_user_front_end import Events, FakeWorker, event_file, memory_file, open_descriptors, run, served

from lockgate.plugin.vhost_user.dispatch import Message, answer
from lockgate.plugin.vhost_user.messages import HEADER, Header, Request
from lockgate.plugin.vhost_user.session import Session

FOLDER = Path(__file__).parent / "vhost_user_conversations"
CONVERSATIONS = sorted(FOLDER.glob("*.txt"))


def test_there_is_a_conversation_of_each_front_end() -> None:
    """Both kernels of User-mode Linux, both QEMUs."""
    assert [path.stem for path in CONVERSATIONS] == ["qemu-11.1", "qemu-7.2", "uml-6.1", "uml-7.2"]


def make_descriptor(kind: str) -> int:
    """A descriptor of the kind that was seen: a file of a size, an eventfd, or a socket that somebody holds."""
    if kind.startswith("file:"):
        return memory_file(int(kind.removeprefix("file:")))
    if kind == "eventfd":
        return event_file()
    assert kind == "socket", kind
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()


def sent(line: str) -> tuple[Header, bytes, list[int]]:
    """A message of a line that starts with ">"."""
    _, name, flags, payload, kinds = line.split(" ")
    data = b"" if payload == "-" else bytes.fromhex(payload)
    fds = [] if kinds == "-" else [make_descriptor(kind) for kind in kinds.split(",")]
    return Header(Request[name], int(flags), len(data)), data, fds


async def transcript(text: str) -> str:
    """The conversation as it goes when the front end says what it says in `text`."""
    worker, events = FakeWorker(), Events()
    session = Session(worker, events)
    lines = []
    for line in text.splitlines():
        if line.startswith("#"):
            lines.append(line)
        if not line.startswith("> "):
            continue
        lines.append(line)
        worker.calls.clear()
        events.all.clear()
        message = Message(*sent(line))
        verdict = await session.carry_out(message, session.receive(message))
        for fd in message.fds:
            os.close(fd)
        out = answer(message, verdict, session.protocol_features)
        lines += [f"  {call}" for call in worker.calls]
        lines += [f"* {event} {' '.join(map(str, fields.values()))}" for event, fields in events.all]
        if out.reply is not None:
            lines.append(f"< {out.reply.hex()}")
        assert not out.close, line
    session.close()
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", CONVERSATIONS, ids=lambda path: path.stem)
def test_a_real_front_end_is_answered_as_recorded(path: Path) -> None:
    """Request by request: the worker's commands, the events and the answer; and no descriptor is left open."""
    gc.collect()  # what other tests had open and nobody has any more
    before = open_descriptors()
    text = path.read_text()
    assert run(transcript(text)) == text
    assert open_descriptors() == before


@pytest.mark.parametrize("path", CONVERSATIONS, ids=lambda path: path.stem)
def test_a_real_front_end_gets_its_answers_in_order_over_a_socket(path: Path, tmp_path: Path) -> None:
    """All sent at once, as fast as the socket takes it; then the front end leaves, and the link is let go of."""
    lines = path.read_text().splitlines()

    async def conversation() -> tuple[list[str], list[str]]:
        async with served(FakeWorker(), tmp_path) as service:
            front_end = await service.connect()

            async def speak() -> None:
                for line in lines:
                    if line.startswith("> "):
                        header, payload, fds = sent(line)
                        await front_end.send_bytes(HEADER.pack(*header) + payload, fds)
                        for fd in fds:
                            os.close(fd)

            speaking = asyncio.create_task(speak())
            answers = []
            for line in lines:
                if line.startswith("< "):
                    reply = await front_end.receive()
                    assert reply is not None, "closed"
                    answers.append("< " + HEADER.pack(*reply[0]).hex() + reply[1].hex())
            await speaking
            await front_end.leave()
            return answers, service.events.names()

    answers, events = run(conversation())
    assert answers == [line for line in lines if line.startswith("< ")]
    assert "link.refused" not in events
    assert events.count("link.attach") == events.count("link.detach")
