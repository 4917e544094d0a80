"""Floor 0, the contracts: tables, workspace, config, protocols, errors. Imports nothing of ours."""
