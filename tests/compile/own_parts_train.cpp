// compiles
#include <moe/moe.hpp>

static_assert(moe::TrainableRouter<moe::Router<float>, float>);
static_assert(moe::TrainableRouter<moe::Router<Eigen::bfloat16>, Eigen::bfloat16>);
static_assert(moe::TrainableExpert<moe::Expert<double>, double>);
static_assert(moe::TrainableExpert<moe::MoELayer<float>, float>);
static_assert(moe::TrainableExpertSet<moe::FfnExperts<float>, float>);
static_assert(moe::ExpertSet<moe::PackedExperts<moe::bf16>, float>);
static_assert(!moe::TrainableExpertSet<moe::PackedExperts<float>, float>);
static_assert(!moe::Real<int> && !moe::Real<bool> && !moe::Real<std::complex<float>>);
static_assert(moe::Real<Eigen::half> && moe::Real<double>);

int main() {}
