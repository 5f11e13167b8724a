// Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011): four random
// words for each counter of 128 bits and key of 64, by ten rounds, from no state at all.
#pragma once

struct Words {
    unsigned int at[4];
};

__device__ inline Words philox(Words counter, unsigned long long seed) {
    unsigned int key_0 = (unsigned int)seed, key_1 = (unsigned int)(seed >> 32);
    Words c = counter;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned int high_0 = __umulhi(0xD2511F53u, c.at[0]), low_0 = 0xD2511F53u * c.at[0];
        const unsigned int high_1 = __umulhi(0xCD9E8D57u, c.at[2]), low_1 = 0xCD9E8D57u * c.at[2];
        c = {{high_1 ^ c.at[1] ^ key_0, low_1, high_0 ^ c.at[3] ^ key_1, low_0}};
        key_0 += 0x9E3779B9u;
        key_1 += 0xBB67AE85u;
    }
    return c;
}

// The four words that belong to a block of an array, in one of the draws.
__device__ inline Words random_words(unsigned long long seed, unsigned long long draw, unsigned long long block) {
    return philox({{(unsigned int)block, (unsigned int)(block >> 32), (unsigned int)draw, (unsigned int)(draw >> 32)}},
                   seed);
}

// Numbers from 0 to 1, 1 excluded, from 16 bytes of random words: four float32 of 24 bits, or two float64 of 53.
__device__ inline void uniforms(const Words& words, float (&u)[4]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) u[k] = float(words.at[k] >> 8) * 5.9604644775390625e-8f;  // 2^-24
}

__device__ inline void uniforms(const Words& words, double (&u)[2]) {
#pragma unroll
    for (int k = 0; k < 2; ++k)  // 27 bits above 26
        u[k] = (double(words.at[2 * k] >> 5) * 67108864.0 + double(words.at[2 * k + 1] >> 6)) *
               1.1102230246251565e-16;  // 2^-53
}
