# SPDX-License-Identifier: Apache-2.0
"""The VM hull: QEMU machines, cloned from memory templates, driven through a guest agent."""
