# SPDX-License-Identifier: Apache-2.0
"""Forwards to sockets in a guest, each by an ssh of its own."""
