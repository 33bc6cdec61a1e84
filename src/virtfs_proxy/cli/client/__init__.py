# SPDX-License-Identifier: Apache-2.0
"""The command `virtfs client`: main.py parses and dispatches, a module for each kind of command."""
