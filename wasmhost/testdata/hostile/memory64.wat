;; A memory of 64-bit addresses: what the host reads as a pointer is half of one. It must not load.
(module
  (memory (export "memory") i64 1)
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000))
  (func (export "mg1_hook") (param i32 i32) (result i64) (i64.const 0)))
