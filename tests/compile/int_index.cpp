// expect: moe counts elements, rows and bytes in Eigen::Index
#define EIGEN_DEFAULT_DENSE_INDEX_TYPE int
#include <moe/moe.hpp>
