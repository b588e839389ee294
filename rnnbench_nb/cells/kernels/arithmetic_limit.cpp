// Multiply-adds on registers only: what one core can do, at the widest vectors it has.
#include <cstdint>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__AVX512F__)
constexpr int bytes = 64;
#elif defined(__AVX2__)
constexpr int bytes = 32;
#else
constexpr int bytes = 16;
#endif
typedef float Vector __attribute__((vector_size(bytes)));
extern "C" int64_t peak_highest(int64_t rounds, float* sink) {
  Vector sum[12], x = Vector{} + 0.999f, y = Vector{} + 1e-6f;
  for (auto& s : sum) s = Vector{} + 1.f;
  for (int64_t i = 0; i < rounds; i++)
    for (auto& s : sum) s = s * x + y;
  for (auto& s : sum) x += s;
  *sink = x[0];
  return rounds * 12 * (bytes / 4) * 2;  // operations
}
// Products of bfloat16 numbers, as agru.cpp takes them; float32's where there are none.
extern "C" int64_t peak_medium(int64_t rounds, float* sink) {
#if defined(__AMX_BF16__) && defined(__linux__)
  if (syscall(SYS_arch_prctl, 0x1023, 18)) return peak_highest(rounds, sink);
  struct { uint8_t palette, _[15]; uint16_t bytes[16]; uint8_t rows[16]; } shapes = {
      1, {}, {64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16}};
  float sums[16][16];
  _tile_loadconfig(&shapes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < rounds; i++) {  // four sums; the factors' values do not matter
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, sums, 64);
  _tile_release();
  *sink = sums[0][0];
  return rounds * 4 * (16 * 16 * 32) * 2;
#elif defined(__AVX512BF16__)
  __m512 sum[12] = {};
  const __m512bh x = (__m512bh)_mm512_set1_ps(*sink), y = x;
  for (int64_t i = 0; i < rounds; i++)
    for (auto& s : sum) s = _mm512_dpbf16_ps(s, x, y);
  for (auto& s : sum) *sink += s[0];
  return rounds * 12 * (bytes / 2) * 2;
#else
  return peak_highest(rounds, sink);
#endif
}
