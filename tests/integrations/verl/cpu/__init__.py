"""What a real `main_ppo` run of verl needs to start on a machine without an accelerator: a platform and a rollout.

Nothing in verl is patched but the name of the process group's backend. Ray workers find this package through
PYTHONPATH and load it through VERL_USE_EXTERNAL_MODULES (see `world.environment`).
"""
