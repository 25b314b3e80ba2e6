# SPDX-License-Identifier: Apache-2.0
"""proa runs an OCI image as a container or as a virtual machine, behind the Docker Engine API."""

__version__ = "0.1.0"
