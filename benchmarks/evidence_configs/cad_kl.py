_base_ = './lad_kl.py'

model = dict(distiller=dict(loss=dict(type='CADLoss')))
