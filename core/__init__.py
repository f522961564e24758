# SPDX-License-Identifier: Apache-2.0
"""The worker: the process that moves frames, and what the other processes need to make it and to talk to it.

Imported by lockgate.plugin; imports nothing of it. All that is C lives in datapath/, behind datapath.h.
"""
