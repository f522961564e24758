# SPDX-License-Identifier: Apache-2.0
"""vhost_user: the back end of the vhost-user protocol, as the control process speaks it.

For control.py, which runs `server.VhostUserServer`. No frame passes here: the session learns from the front end where
the guest's memory and rings are, and tells the worker.

Adversary: the front end, which is one step from the guest. Each file says what it must withstand.
"""
