;; A memory that threads share. It must not load.
(module
  (memory (export "memory") 1 1 shared)
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000))
  (func (export "mg1_hook") (param i32 i32) (result i64) (i64.const 0)))
