# SPDX-License-Identifier: Apache-2.0
"""The program that answers containers' questions for names, apart from the daemon. See ``server``."""
