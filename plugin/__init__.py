# SPDX-License-Identifier: Apache-2.0
"""What callers and people talk to: the contracts, the start, supervision, and the control plane of one network.

No frame of a flow passes here. Modules that the wrapper needs before READY (launch, start, keeper, log, spec, the
contracts, what reads the host's network) import nothing that costs milliseconds; control and what it uses may.
"""
