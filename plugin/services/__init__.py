# SPDX-License-Identifier: Apache-2.0
"""What the gateway answers by itself: pure functions of a guest's frame and the assignments."""
