"""The floor: the least that a supervisor in Python can be, as a reference beside the real ones.

One epoll, posix_spawn, a pidfd for each child; every death is a new start at once. It answers JobMon 0.7's
status command on a UNIX socket, and `wait` when the job dies, and stops everything on SIGTERM. No policy, no
configuration, no errors.
Usage: floor.py SOCKET COUNT COMMAND
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys

path, count, command = sys.argv[1], int(sys.argv[2]), sys.argv[3]
epoll = select.epoll()
jobs: dict[str, int] = {}  # name -> pid
pidfds: dict[int, str] = {}  # pidfd -> name
clients: dict[int, socket.socket] = {}
waiting: dict[str, list[tuple[socket.socket, int]]] = {}  # name -> who waits for its end, by which request
stopping = False
wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)


def start(name: str) -> None:
    jobs[name] = pid = os.posix_spawn(command, [command], os.environ, setsid=True)
    fd = os.pidfd_open(pid)
    pidfds[fd] = name
    epoll.register(fd, select.EPOLLIN)


def died(fd: int) -> None:
    name = pidfds.pop(fd)
    epoll.unregister(fd)
    os.close(fd)
    os.waitpid(jobs.pop(name), 0)
    if not stopping:
        start(name)
    told: dict[socket.socket, bytes] = {}
    for client, number in waiting.pop(name, ()):
        reply = {"type": "reply", "id": number, "ok": True, "results": [{"job": name, "ok": True}]}
        told[client] = told.get(client, b"") + frame(reply)
    for client, replies in told.items():
        client.sendall(replies)


def frame(message: dict[str, object]) -> bytes:
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def answer(client: socket.socket) -> None:
    data = client.recv(1 << 20)  # whole requests, always: nobody here sends them in pieces
    if not data:
        epoll.unregister(client)
        del clients[client.fileno()]
        return client.close()
    while data:
        size = 4 + int.from_bytes(data[:4], "big")
        request, data = json.loads(data[4:size]), data[size:]
        if request["type"] == "request":
            waiting.setdefault(request["jobs"][0], []).append((client, request["id"]))
        else:
            name = request["job"]
            client.sendall(frame({"type": 4, "job": name, "is_running": name in jobs, "pid": jobs.get(name)}))
    return None


def stop() -> None:
    global stopping
    stopping = True
    for fd in pidfds:
        signal.pidfd_send_signal(fd, signal.SIGTERM)


signal.signal(signal.SIGTERM, lambda *_: None)
signal.set_wakeup_fd(wakeup_write)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
epoll.register(listener, select.EPOLLIN)
epoll.register(wakeup, select.EPOLLIN)
for number in range(count):
    start(f"job-{number:04d}")
while jobs or not stopping:
    for fd, _ in epoll.poll():
        if fd in pidfds:
            died(fd)
        elif fd in clients:
            answer(clients[fd])
        elif fd == wakeup and os.read(wakeup, 64):
            stop()
        else:
            client, _ = listener.accept()
            clients[client.fileno()] = client
            epoll.register(client, select.EPOLLIN)
