"""Measurements that an operator can repeat: `agentd bench`. One module for each subject."""
