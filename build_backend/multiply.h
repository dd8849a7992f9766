/* Included before the C that mypyc writes: its product of two integers leaves machine words at
   2**30 already, and femtoseconds are larger. This one leaves them where the product overflows, for
   the same slow path with Python integers: exact, never wrapped. */
#include <Python.h>
#include "CPy.h"

#if defined(__GNUC__)
static inline CPyTagged exact_multiply(CPyTagged left, CPyTagged right) {
    Py_ssize_t product; /* of a tagged integer (twice its value) and a plain one: tagged again */
    if (CPyTagged_CheckShort(left) && CPyTagged_CheckShort(right) &&
        !__builtin_mul_overflow((Py_ssize_t)left, CPyTagged_ShortAsSsize_t(right), &product)) {
        return (CPyTagged)product;
    }
    return CPyTagged_Multiply_(left, right);
}
#define CPyTagged_Multiply exact_multiply
#endif
