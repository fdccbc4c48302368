"""TensorRT: graphs in standard ONNX with every type written out, engines where they can be built, build kits elsewhere.

TensorRT 11 takes strongly typed graphs alone: precision is what the graph says. The same graph is read by TensorRT 10
(``NetworkDefinitionCreationFlag.STRONGLY_TYPED``) and by TensorRT for RTX. Each file has one step:

``standard``   one opset, names on all nodes, finite masks, no other runtime's operators
``ranges``     what activations reach on calibration data
``int8``       explicit Q/DQ pairs, where TensorRT fuses them
``precision``  fp16 with the overflow-prone layers in fp32
``profiles``   the shapes that an engine takes, from data
``kit``        everything that a device needs to build and check the engine itself
``engine``     the build, in a process of its own; a crash is an error with a node's name
"""
