# SPDX-License-Identifier: Apache-2.0
"""What the gateway answers by itself: pure functions from a frame of the guest and the assignments to a frame for it."""
