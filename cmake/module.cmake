# oneshot._C: torch ops on the LibTorch stable ABI, in a pybind11 module that says what was built.
# No find_package(Torch): with a CUDA build of torch and no toolkit it is a fatal error, and the
# stable ABI needs only an include folder and libtorch_cpu.
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)

function(oneshot_ask_python variable code)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "${code}"
    OUTPUT_VARIABLE answer RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(failed)
    message(FATAL_ERROR "${Python_EXECUTABLE} could not run: ${code}")
  endif()
  set(${variable} "${answer}" PARENT_SCOPE)
endfunction()

oneshot_ask_python(TORCH_DIR
  "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))")
oneshot_ask_python(TORCH_VERSION
  "import importlib.metadata as m; print(m.version('torch'))")
oneshot_ask_python(pybind11_DIR "import pybind11; print(pybind11.get_cmake_dir())")
find_package(pybind11 REQUIRED CONFIG)

oneshot_sources(torch_sources torch .cpp)
list(FILTER torch_sources EXCLUDE REGEX "_cuda\\.cpp$")

# NO_EXTRAS: link-time optimisation buys nothing here and costs most of the build.
pybind11_add_module(_C MODULE NO_EXTRAS csrc/python/module.cpp ${torch_sources})
# torch carries a pybind11 of its own, which in torch 2.11 refuses the stable ABI: the one asked for is found first.
target_include_directories(_C SYSTEM PRIVATE ${pybind11_INCLUDE_DIR} ${TORCH_DIR}/include)
# Symbols newer than torch 2.10 become compile errors: one build runs on every torch >= 2.10.
target_compile_definitions(_C PRIVATE
  TORCH_TARGET_VERSION=0x020a000000000000
  ONESHOT_VERSION="${ONESHOT_VERSION}" ONESHOT_TORCH_VERSION="${TORCH_VERSION}")
target_link_directories(_C PRIVATE ${TORCH_DIR}/lib)
target_link_libraries(_C PRIVATE oneshot_kernels torch_cpu)
set_target_properties(_C PROPERTIES
  # torch is imported first and brings libtorch_cpu; a path into this machine's torch helps nobody.
  BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "")
if(ONESHOT_OUTPUT_DIR)
  set_target_properties(_C PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY ${ONESHOT_OUTPUT_DIR} PREFIX "" SUFFIX ""
    OUTPUT_NAME ${ONESHOT_MODULE_FILENAME})
  # Read when the library does not load: it says what was built, the loader says what is installed.
  file(WRITE ${ONESHOT_OUTPUT_DIR}/_build_info.json
    "{\"oneshot\": \"${ONESHOT_VERSION}\", \"torch\": \"${TORCH_VERSION}\", \"python\": \"${Python_VERSION}\", \"compiler\": \"${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}\", \"system\": \"${CMAKE_SYSTEM_PROCESSOR} ${CMAKE_SYSTEM_NAME}\"}\n")
endif()
