;; A data segment at -1.
(module
  (memory (export "memory") 1)
  (data (i32.const -1) "a")
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000))
  (func (export "mg1_hook") (param i32 i32) (result i64) (i64.const 0)))
