// expect: (not satisfy 'ParameterList'|of 'ParameterList<P>' \[with P = Expert::Params\])
#include <moe/moe.hpp>

struct Expert {
  struct Params {
    moe::Matrix<float> scale;
  };
};

int main() {
  const Expert::Params params;
  moe::zeros_like(params);
}
