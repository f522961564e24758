# SPDX-License-Identifier: Apache-2.0
"""libkrun's network device (a program): its end of the socket pair on one side, eth0 of a guest's kernel on the other.

Called by krun.py as `krun_device.py FD MAC`, in a namespace of its own: the guest is the kernel there, and eth0 a tap
with the offloads of libkrun's "compat" features, so that TCP of the guest comes in super-segments without checksums.
Adversary: nobody; what the helper does wrong is said in a line on standard output.
Invariants, as libkrun has them: its 12 bytes of virtio header are taken off what the guest sends and are all zero in
front of what it gets; one send() a frame; the first byte of a length or of a frame is not waited for, the others are;
after any hang-up it never looks at the socket again.
"""

import fcntl
import os
import select
import socket
import struct
import sys

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8  # linux/if_tun.h
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_UFO = 0x1, 0x2, 0x10  # what CSUM, HOST_TSO4 and HOST_UFO let the guest send
SIOCSIFHWADDR, ARPHRD_ETHER = 0x8924, 1
HEADER = 12
FRAME_MAX = 65550
SEND_BUFFER = 16 << 20


def guest_interface(mac: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"eth0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(tap, TUNSETVNETHDRSZ, struct.pack("i", HEADER))
    fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_UFO)
    hardware = struct.pack("16sH6s16x", b"eth0", ARPHRD_ETHER, bytes.fromhex(mac.replace(":", "")))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFHWADDR, hardware)
    return tap


class Device:
    def __init__(self, backend: socket.socket, tap: int) -> None:
        self._backend, self._tap = backend, tap
        backend.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._expected = 0  # bytes of a frame whose length has been read
        self._unsent = b""
        self._epoll = select.epoll()
        self._epoll.register(tap, select.EPOLLIN)
        ours = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET | select.EPOLLRDHUP
        self._epoll.register(backend, ours)

    def _read(self, size: int) -> bytes:
        """BlockingIOError if not even the first byte is there."""
        data = self._backend.recv(size, socket.MSG_DONTWAIT)
        while data and len(data) < size:
            data += self._backend.recv(size - len(data), socket.MSG_WAITALL)
        return data

    def _to_guest(self) -> None:
        while True:
            try:
                self._expected = self._expected or int.from_bytes(self._read(4), "big")
                if not 60 <= self._expected <= FRAME_MAX:
                    print(f"a frame of {self._expected} bytes", flush=True)
                frame = self._read(self._expected)
            except BlockingIOError:
                return
            self._expected = 0
            try:
                os.write(self._tap, bytes(HEADER) + frame)
            except OSError:
                pass  # eth0 is down

    def _from_guest(self) -> None:
        """Until the socket is full: then the rest, or the whole frame, waits for room, and what is behind it too."""
        while True:
            try:
                if not self._unsent:
                    frame = os.read(self._tap, HEADER + FRAME_MAX)[HEADER:]
                    self._unsent = struct.pack("!I", len(frame)) + frame
            except BlockingIOError:
                return
            try:
                while self._unsent:
                    sent = self._backend.send(self._unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    self._unsent = self._unsent[sent:]
            except BlockingIOError:
                self._epoll.modify(self._tap, 0)
                return
            except BrokenPipeError:
                self._unsent = b""

    def run(self) -> None:
        while True:
            for source, events in self._epoll.poll():
                if source == self._tap:
                    self._from_guest()
                elif events & (select.EPOLLHUP | select.EPOLLRDHUP):
                    print("networking is disabled: the backend has hung up", flush=True)
                else:
                    if events & select.EPOLLIN:
                        self._to_guest()
                    if events & select.EPOLLOUT:
                        self._epoll.modify(self._tap, select.EPOLLIN)
                        self._from_guest()


def main() -> None:
    descriptor, mac = sys.argv[1:]
    device = Device(socket.socket(fileno=int(descriptor)), guest_interface(mac))
    print("ready", flush=True)
    device.run()


if __name__ == "__main__":
    main()
