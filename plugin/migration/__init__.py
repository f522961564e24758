# SPDX-License-Identifier: Apache-2.0
"""migration: a guest moves to another host, and its TCP connections with it.

stream      the bytes that go from one helper to the other, through the two monitors: a codec without I/O
connection  the peer's end of a connection: what the kernel knows of a socket, read out of one and put into another
repair      the privileged program that switches sockets to repair mode for us (passt-repair, or one like it)
pipe        the descriptor that the monitor gives us for the bytes
move        the order of it all, on the host that is left and on the one that is reached
"""
