# SPDX-License-Identifier: Apache-2.0
"""namespace: a network namespace as the guest, for pasta.

interface_plan   what its interface is to be, from what was asked for and what the host has
agent            the one process inside, which makes what must be made there
agent_records    what the agent and the others say to each other
inside           what control holds of the namespace
first_words      what the first worker is told, so that the namespace is ready without control's imports
namespace_watch  whether it is still wanted
new_namespace    one that a command is run in: its birth and its end
"""
