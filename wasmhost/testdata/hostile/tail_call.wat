;; A tail call is a loop without a loop header. This proposal is not among those we take: it
;; must not load.
(module
  (memory (export "memory") 1)
  (func $f (return_call $f))
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000))
  (func (export "mg1_hook") (param i32 i32) (result i64) (call $f) (i64.const 0)))
