;; An import of what is no host function of ours. It must not load.
(module
  (import "env" "system" (func (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "mg1_hook") (param i32 i32) (result i64) (i64.const 0))
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000)))
